"""Deformable-DETR++: Swin-L, 900 queries, 36 epochs."""

from ..common.schedule import lr_multiplier_36ep as lr_multiplier
from .deformable_detr_plus_plus_swin_l_900q import dataloader, model, optimizer, train

train.max_iter = 270000
