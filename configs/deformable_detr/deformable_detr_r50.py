"""Deformable DETR, one-stage: ResNet-50, 300 queries, 12 epochs of COCO."""

from ..common.coco_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.backbones import resnet50 as _backbone
from ..common.models.deformable_detr import model

model.backbone = _backbone
optimizer.params.lr_factor_func.factors = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_point": 0.1}
