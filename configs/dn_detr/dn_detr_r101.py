"""DN-DETR: ResNet-101 C5, 12 epochs."""

from .dn_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet101.tv_in1k"
