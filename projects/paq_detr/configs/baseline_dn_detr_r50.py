"""DN-DETR++, a baseline of PaQ-DETR: two-stage DN-Deformable-DETR; ResNet-50, 4 levels, 300 queries, 12 epochs."""

from .baseline_dab_detr_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.plus_plus import denoising as _denoising

model.methods.append(_denoising)
