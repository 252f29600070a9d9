from detrx.d2.config import LazyCall as L
from detrx.evaluation import LVISEvaluator

from .coco import dataloader

# LVIS v1 in $DETECTRON2_DATASETS/lvis, on the images of COCO 2017, as in Detectron2: images with classes that less than
# a thousandth of the images show are repeated, and 300 detections of an image count.
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.repeat_threshold = 0.001
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(LVISEvaluator)(dataset_name="${..test.dataset.names}")
