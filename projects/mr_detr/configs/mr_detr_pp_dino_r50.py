"""Mr. DETR++ on DINO (Deformable-DETR++ with denoising): ResNet-50, 900 queries, 12 epochs."""

from .common.mr_detr_pp import mr_detr_plus_plus
from .mr_detr_dino_r50 import dataloader, lr_multiplier, model, optimizer, train

mr_detr_plus_plus(model)
