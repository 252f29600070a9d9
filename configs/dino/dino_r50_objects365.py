"""DINO on Objects365 v2: ResNet-50, 4 levels, 900 queries, as many iterations as 12 epochs of COCO (0.8 epochs)."""

from .dino_r50 import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "objects365_v2_train"
dataloader.test.dataset.names = "objects365_v2_val"
model.decoder.heads.num_classes = 365
