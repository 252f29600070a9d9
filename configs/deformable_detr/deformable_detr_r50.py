"""Deformable DETR, one-stage: ResNet-50, 300 queries, 12 epochs of COCO."""

from ..common.data.coco import dataloader
from ..common.models.backbones import resnet50 as _backbone
from ..common.models.deformable_detr import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_12ep as lr_multiplier
from ..common.train import train

model.backbone = _backbone
optimizer.params.lr_factor_func.factors = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_point": 0.1}
