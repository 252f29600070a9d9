"""PaQ-DETR on DAB-DETR++: ResNet-50, 4 levels, 300 queries, 12 epochs."""

from .baseline_dab_detr_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
