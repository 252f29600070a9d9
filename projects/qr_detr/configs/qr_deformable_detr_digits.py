"""QR-DETR on the small one-stage Deformable DETR for digits: its three layers are one of each kind of routing."""

from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import DEFAULT_FFN, QueryRouting

from ....configs.deformable_detr.deformable_detr_one_stage_digits import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.methods.append(L(QueryRouting)(scheme="eeqr", regroup="scatter", ffn=DEFAULT_FFN))
