from omegaconf import OmegaConf

from detrx.d2.config import LazyCall as L
from detrx.d2.evaluation import COCOEvaluator
from detrx.data import (
    DetectionMapper,
    build_test_loader,
    build_train_loader,
    digits_augmentation,
    get_detection_dataset_dicts,
)

# Handwritten digits on 128 px canvases, generated when first asked for. For the harder variant (or digits_large):
#   dataloader.train.dataset.names=digits_hard_train dataloader.test.dataset.names=digits_hard_val
dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="digits_train"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=L(digits_augmentation)(
            shuffle_prob=0.5, invert_prob=0.5, jitter=0.0, translate=0.0, scale=[1.0, 1.0]
        ),
    ),
    total_batch_size=4,
    num_workers=1,
    aspect_ratio_grouping=False,
    seed="${oc.select:train.seed,null}",
    device="${oc.select:train.device,cpu}",
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="digits_val", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=None),
    batch_size=8,
    num_workers=1,
    device="${oc.select:train.device,cpu}",
)

dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}")
