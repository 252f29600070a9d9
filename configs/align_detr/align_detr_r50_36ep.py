"""Align-DETR: ResNet-50, 4 levels, 36 epochs."""

from ..common.schedule import lr_multiplier_36ep as lr_multiplier
from .align_detr_r50 import dataloader, model, optimizer, train

train.max_iter = 270000
