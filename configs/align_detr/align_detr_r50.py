"""Align-DETR: ResNet-50, 4 levels, 900 queries, 12 epochs of COCO."""

from ..common.data.coco import dataloader
from ..common.models.align_detr import model
from ..common.models.backbones import resnet50 as _backbone
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_12ep as lr_multiplier
from ..common.train import train

model.backbone = _backbone
