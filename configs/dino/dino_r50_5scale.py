"""DINO: ResNet-50, 5 levels from stride 4 on, 12 epochs."""

from .dino_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = [256, 512, 1024, 2048]
model.tokenizer.num_levels = 5
