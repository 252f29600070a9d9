"""H-Deformable-DETR: ResNet-50, 300 queries, 36 epochs."""

from ....configs.common.schedule import lr_multiplier_36ep as lr_multiplier
from .h_deformable_detr_r50 import dataloader, model, optimizer, train

train.max_iter = 270000
