"""DINO: ResNet-50, 5 levels, 24 epochs."""

from ..common.schedule import lr_multiplier_24ep as lr_multiplier
from .dino_r50_5scale import dataloader, model, optimizer, train

train.max_iter = 180000
