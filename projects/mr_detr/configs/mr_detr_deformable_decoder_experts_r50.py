"""The route-aware experts of Mr. DETR++ on Mr. DETR: Deformable-DETR++, ResNet-50, 300 queries, 12 epochs."""

from .common.mr_detr_pp import decoder_experts
from .mr_detr_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

decoder_experts(model)
