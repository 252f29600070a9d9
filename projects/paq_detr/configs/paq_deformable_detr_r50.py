"""PaQ-DETR on Deformable-DETR++: ResNet-50, 300 queries, 12 epochs."""

from .baseline_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
