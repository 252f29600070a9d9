"""Two-stage Deformable DETR: ResNet-101, 50 epochs."""

from .deformable_detr_two_stage_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet101.tv_in1k"
