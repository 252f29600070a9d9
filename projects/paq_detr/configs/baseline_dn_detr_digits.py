"""A small DN-DETR++ for digits: DN-Deformable-DETR, two-stage."""

from .baseline_dab_detr_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.plus_plus import denoising as _denoising

model.methods.append(_denoising)
