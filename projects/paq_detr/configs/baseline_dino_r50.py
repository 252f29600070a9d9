"""DINO++, a baseline of PaQ-DETR: DINO with detrex's better settings; ResNet-50, 4 levels, 900 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import FocalLoss, GIoULoss, L1Loss

from ....configs.dino.dino_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.freeze_at = 0
for _supervision in model.criterion.supervisions:
    _supervision.losses[0].weight = 2.0
_denoising = model.methods[0]
_denoising.num_queries = 300
_denoising.losses = [L(FocalLoss)(weight=1.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]
