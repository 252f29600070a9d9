"""H-Deformable-DETR: Swin-T, 300 queries, 12 epochs."""

from ....configs.common.models.backbones import swin_tiny as _backbone
from .h_deformable_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [192, 384, 768]
