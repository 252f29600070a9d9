"""Mr. DETR with the losses of Align-DETR: Deformable-DETR++ with denoising, ResNet-50, 900 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GIoULoss, IABCELoss, L1Loss, RankWeight

from .mr_detr_dino_r50 import dataloader, lr_multiplier, model, optimizer, train

for _supervision in model.criterion.supervisions:
    _supervision.losses = [L(IABCELoss)(weight=1.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]
model.methods[1].losses = [
    L(IABCELoss)(weight=1.0, pair_weight=L(RankWeight)(tau=1.5)),
    L(L1Loss)(weight=5.0),
    L(GIoULoss)(weight=2.0, pair_weight=L(RankWeight)(tau=1.5)),
]
