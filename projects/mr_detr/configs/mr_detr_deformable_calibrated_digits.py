"""The score calibration of Mr. DETR++ on the small Mr. DETR on Deformable-DETR++ for digits."""

from .common.calibration import calibrate
from .mr_detr_deformable_digits import dataloader, lr_multiplier, model, optimizer, train

calibrate(model)
