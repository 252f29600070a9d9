"""Mr. DETR on Deformable-DETR++: Swin-L, 900 queries, 12 epochs."""

from ....configs.common.models.backbones import swin_large as _backbone
from .mr_detr_deformable_r50_900q import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _backbone
model.neck.in_channels = [384, 768, 1536]
