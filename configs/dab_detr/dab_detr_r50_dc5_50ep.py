"""DAB-DETR: ResNet-50 DC5, 50 epochs."""

from ..common.schedule import lr_multiplier_50ep as lr_multiplier
from .dab_detr_r50_dc5 import dataloader, model, optimizer, train

train.max_iter = 375000
