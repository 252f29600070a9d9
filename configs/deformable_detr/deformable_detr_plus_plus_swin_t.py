"""Deformable-DETR++: Swin-T, 300 queries, 12 epochs."""

from ..common.models.backbones import swin_tiny as _backbone
from .deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [192, 384, 768]
