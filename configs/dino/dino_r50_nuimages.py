"""DINO on nuImages: ResNet-50, 4 levels, 900 queries, as many iterations as 12 epochs of COCO (21 epochs)."""

from .dino_r50 import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "nuimages_train"
dataloader.test.dataset.names = "nuimages_val"
model.decoder.heads.num_classes = 10
