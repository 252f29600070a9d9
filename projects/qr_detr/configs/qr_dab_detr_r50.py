"""QR-DETR on DAB-DETR: ResNet-50 C5, 300 queries, 12 epochs of COCO."""

from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import DEFAULT_FFN, QueryRouting

from ....configs.dab_detr.dab_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(QueryRouting)(scheme="eeqr", regroup="scatter", ffn=DEFAULT_FFN))
