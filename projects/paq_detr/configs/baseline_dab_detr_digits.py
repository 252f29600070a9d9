"""A small DAB-DETR++ for digits: DAB-Deformable-DETR, two-stage."""

from ....configs.deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.plus_plus import dab_detr

dab_detr(model)
