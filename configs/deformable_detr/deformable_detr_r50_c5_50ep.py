"""Deformable DETR on one level: ResNet-50 C5, stride 32, 50 epochs."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res5"]
model.neck.in_features = ["res5"]
model.neck.in_channels = [2048]
model.tokenizer.num_levels = 1
