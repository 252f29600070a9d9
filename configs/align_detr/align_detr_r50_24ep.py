"""Align-DETR: ResNet-50, 4 levels, 24 epochs."""

from ..common.schedule import lr_multiplier_24ep as lr_multiplier
from .align_detr_r50 import dataloader, model, optimizer, train

train.max_iter = 180000
