"""Align-DETR: Swin-T, 4 levels, 900 queries, 12 epochs."""

from ..common.models.backbones import swin_tiny as _backbone
from .align_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [192, 384, 768]
