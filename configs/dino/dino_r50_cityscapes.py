"""DINO on Cityscapes: ResNet-50, 4 levels, 900 queries, 64 epochs."""

from .dino_r50 import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "cityscapes_train"
dataloader.test.dataset.names = "cityscapes_val"
model.decoder.heads.num_classes = 8
train.max_iter = 12000  # of 16 of the 2975 images
train.eval_period = 2000
