"""DINO: Swin-L, 5 levels, 36 epochs."""

from ..common.schedule import lr_multiplier_36ep as lr_multiplier
from .dino_swin_l_5scale import dataloader, model, optimizer, train

train.max_iter = 270000
