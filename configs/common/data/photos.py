from .coco import dataloader

# COCO 2017, or your photographs with `dataset.*` (docs/custom_data.md), at about 208 pixels: the augmentation of DETR,
# scaled, with fewer crops.
dataloader.train.mapper.augmentations.update(
    sizes=[160, 176, 192, 208, 224],
    max_size=320,
    crop_prob=0.3,
    sizes_before_crop=[144, 176, 208],
    crop_range=[128, 208],
)
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test.mapper.augmentations.update(size=208, max_size=320)
dataloader.test.num_workers = 1
