"""QR-DETR on the small two-stage Deformable-DETR++ for photographs: one layer of each kind of routing."""

from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import DEFAULT_FFN, QueryRouting

from ....configs.deformable_detr.deformable_detr_photos import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(QueryRouting)(scheme="eeqr", regroup="scatter", ffn=DEFAULT_FFN))
