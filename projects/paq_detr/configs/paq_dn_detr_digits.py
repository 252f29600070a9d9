"""PaQ-DETR on the small DN-DETR++ for digits."""

from .baseline_dn_detr_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
