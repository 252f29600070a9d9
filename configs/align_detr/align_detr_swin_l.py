"""Align-DETR: Swin-L, 4 levels, 900 queries, 12 epochs."""

from ..common.models.backbones import swin_large as _backbone
from .align_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [384, 768, 1536]
