"""QR-DETR on Deformable DETR, one-stage: ResNet-50, 300 queries, 12 epochs of COCO."""

from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import DEFAULT_FFN, QueryRouting

from ....configs.deformable_detr.deformable_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(QueryRouting)(scheme="eeqr", regroup="scatter", ffn=DEFAULT_FFN))
