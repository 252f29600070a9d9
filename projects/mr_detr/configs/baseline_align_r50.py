"""What the published code of Mr. DETR calls Align-DETR: `baseline_dino_r50` with IA-BCE as the class loss.

The baseline of `mr_detr_align_r50`. Align-DETR with its mixed matching is `align_detr/align_detr_r50`.
"""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GIoULoss, IABCELoss, L1Loss

from .baseline_dino_r50 import dataloader, lr_multiplier, model, optimizer, train

for _supervision in model.criterion.supervisions:
    _supervision.losses = [L(IABCELoss)(weight=1.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]
