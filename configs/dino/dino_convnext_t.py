"""DINO: ConvNeXt-T, 4 levels, 12 epochs."""

from ..common.models.backbones import convnext_tiny as _backbone
from .dino_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [192, 384, 768]
