"""PaQ-DETR on the small Deformable-DETR++ for digits."""

from ....configs.deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
