"""DN-DETR: ResNet-50 C5, 300 queries, 12 epochs of COCO."""

from ..common.coco_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.backbones import resnet50 as _backbone
from ..common.models.dn_detr import model

model.backbone = _backbone
model.backbone.out_features = ["res5"]
