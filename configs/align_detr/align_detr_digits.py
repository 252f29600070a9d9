"""A small Align-DETR for digits: trains on two CPU cores in minutes."""

from ..common.models.align_detr import decoder_supervisions
from ..dino.dino_digits import dataloader, lr_multiplier, model, optimizer, train

_dense_supervision_of_proposals = model.criterion.supervisions[1]
model.criterion.supervisions = [*decoder_supervisions(class_weight=2.0), _dense_supervision_of_proposals]
