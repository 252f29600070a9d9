"""Deformable DETR on one level: ResNet-50 DC5, stride 16, 50 epochs."""

from .deformable_detr_r50_c5_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.model_args = dict(output_stride=16)
