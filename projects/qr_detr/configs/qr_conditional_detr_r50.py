"""QR-DETR on Conditional DETR: ResNet-50 C5, 300 queries, 12 epochs of COCO."""

from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import DEFAULT_FFN, QueryRouting

from ....configs.conditional_detr.conditional_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(QueryRouting)(scheme="eeqr", regroup="scatter", ffn=DEFAULT_FFN))
