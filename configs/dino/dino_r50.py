"""DINO: ResNet-50, 4 levels, 900 queries, 12 epochs of COCO."""

from ..common.coco_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.backbones import resnet50 as _backbone
from ..common.models.dino import model

model.backbone = _backbone
