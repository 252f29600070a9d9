from detrx.d2.config import LazyCall as L
from detrx.data import ResizeLongestSide, lsj_augmentation

from .coco import dataloader

# COCO 2017 with large-scale jitter on squares of 1024 pixels, in place of the augmentation of DETR:
#   from ..common.data.coco_lsj import dataloader
# Images are evaluated with a longer side of 1024 pixels. Which boxes are too small to be kept, by min_visible and
# min_box_size, is ours: 0.0 and 1e-5 keep all that are not empty, as ViTDet does.
dataloader.train.mapper.augmentations = L(lsj_augmentation)(
    size=1024, scale_range=[0.1, 2.0], flip_prob=0.5, pad=True, fill=[124, 116, 104], min_visible=0.1
)
dataloader.train.mapper.min_box_size = 1.0
dataloader.train.aspect_ratio_grouping = False
dataloader.test.mapper.augmentations = L(ResizeLongestSide)(size=1024)
