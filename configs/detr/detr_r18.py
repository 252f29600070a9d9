"""DETR: ResNet-18 C5, 12 epochs."""

from .detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet18.tv_in1k"
model.neck.in_channels = [512]
