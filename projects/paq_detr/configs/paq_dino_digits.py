"""PaQ-DETR on the small DINO for digits."""

from ....configs.dino.dino_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import paq_detr

paq_detr(model)
