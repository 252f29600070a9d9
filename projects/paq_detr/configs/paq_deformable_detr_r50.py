"""PaQ-DETR on Deformable-DETR++: ResNet-50, 300 queries, 12 epochs."""

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
