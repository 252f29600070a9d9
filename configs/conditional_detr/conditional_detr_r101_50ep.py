"""Conditional DETR: ResNet-101 C5, 50 epochs."""

from ..common.schedule import lr_multiplier_50ep as lr_multiplier
from .conditional_detr_r101 import dataloader, model, optimizer, train

train.max_iter = 375000
