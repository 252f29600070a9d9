from omegaconf import OmegaConf

from detrx.d2.config import LazyCall as L
from detrx.data import (
    DetectionMapper,
    build_test_loader,
    build_train_loader,
    detr_augmentation,
    get_detection_dataset_dicts,
    resize_augmentation,
)
from detrx.evaluation import COCOEvaluator

# COCO 2017 in $DETECTRON2_DATASETS/coco/{train2017,val2017,annotations}, with the augmentation of DETR.
dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=L(detr_augmentation)(
            flip_prob=0.5,
            sizes=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
            max_size=1333,
            crop_prob=0.5,
            sizes_before_crop=[400, 500, 600],
            crop_range=[384, 600],
        ),
    ),
    total_batch_size=16,
    num_workers=4,
    aspect_ratio_grouping=True,
    seed="${oc.select:train.seed,null}",
    device="${oc.select:train.device,cpu}",
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=L(resize_augmentation)(size=800, max_size=1333)),
    batch_size=1,
    num_workers=4,
    device="${oc.select:train.device,cpu}",
)

dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}")
