"""DINO: ResNet-101, 4 levels, 12 epochs."""

from .dino_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet101.tv_in1k"
