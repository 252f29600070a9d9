"""The score calibration of Mr. DETR++ on Mr. DETR on Deformable-DETR++, ResNet-50, 300 queries, 12 epochs."""

from .common.calibration import calibrate
from .mr_detr_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

calibrate(model)
