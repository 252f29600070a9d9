"""DETR: ResNet-18 C5, 50 epochs."""

from ..common.schedule import lr_multiplier_50ep as lr_multiplier
from .detr_r18 import dataloader, model, optimizer, train

train.max_iter = 375000
