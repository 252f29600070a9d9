"""The scale-aware experts of Mr. DETR++ on Mr. DETR: Deformable-DETR++, ResNet-50, 300 queries, 12 epochs."""

from .common.mr_detr_pp import encoder_experts
from .mr_detr_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

encoder_experts(model)
