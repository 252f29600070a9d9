"""Mr. DETR++ on Deformable-DETR++: ResNet-50, 300 queries, 12 epochs."""

from .common.mr_detr_pp import mr_detr_plus_plus
from .mr_detr_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

mr_detr_plus_plus(model)
