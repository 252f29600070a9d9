"""PaQ-DETR on DINO++ with H-DETR's branch: ResNet-50, 4 levels, 900 queries, 12 epochs."""

from .baseline_dino_hybrid_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
