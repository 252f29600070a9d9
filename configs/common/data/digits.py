from detrx.d2.config import LazyCall as L
from detrx.data import digits_augmentation

from .coco import dataloader

# Handwritten digits on 128 px canvases, generated when first asked for. For the harder variant (or digits_large):
#   dataloader.train.dataset.names=digits_hard_train dataloader.test.dataset.names=digits_hard_val
dataloader.train.dataset.names = "digits_train"
dataloader.train.mapper.augmentations = L(digits_augmentation)(
    shuffle_prob=0.5, invert_prob=0.5, jitter=0.0, translate=0.0, scale=[1.0, 1.0]
)
dataloader.train.mapper.cache_mib = 256
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.train.aspect_ratio_grouping = False
dataloader.test.dataset.names = "digits_val"
dataloader.test.mapper.augmentations = None
dataloader.test.batch_size = 8
dataloader.test.num_workers = 1
