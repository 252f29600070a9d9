"""DINO on LVIS v1: ResNet-50, 4 levels, 900 queries, as many iterations as 12 epochs of COCO."""

from ..common.data.lvis import dataloader
from .dino_r50 import lr_multiplier, model, optimizer, train

model.decoder.heads.num_classes = 1203
