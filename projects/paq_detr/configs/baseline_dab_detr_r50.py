"""DAB-DETR++, a baseline of PaQ-DETR: two-stage DAB-Deformable-DETR; ResNet-50, 4 levels, 300 queries, 12 epochs."""

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.plus_plus import dab_detr

dab_detr(model)
model.query_source.supervise = "chosen"
model.criterion.supervisions[1].class_agnostic = False
for _supervision in model.criterion.supervisions:
    _supervision.losses[0].weight = 1.0
