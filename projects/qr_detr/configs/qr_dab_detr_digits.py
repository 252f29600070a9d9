"""QR-DETR on the small DAB-DETR for digits."""

from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import DEFAULT_FFN, QueryRouting

from ....configs.dab_detr.dab_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(QueryRouting)(scheme="eeqr", regroup="scatter", ffn=DEFAULT_FFN))
