"""Deformable-DETR++, a baseline of PaQ-DETR: ResNet-50, 300 queries, 12 epochs."""

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

for _supervision in model.criterion.supervisions:
    _supervision.losses[0].weight = 2.0
