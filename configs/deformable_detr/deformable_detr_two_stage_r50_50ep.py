"""Two-stage Deformable DETR: ResNet-50, 50 epochs."""

from ..common.schedule import lr_multiplier_50ep as lr_multiplier
from .deformable_detr_two_stage_r50 import dataloader, model, optimizer, train

train.max_iter = 375000
