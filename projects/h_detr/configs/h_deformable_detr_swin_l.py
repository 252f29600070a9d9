"""H-Deformable-DETR: Swin-L, 300 queries, 12 epochs."""

from ....configs.common.models.backbones import swin_large as _backbone
from .h_deformable_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [384, 768, 1536]
