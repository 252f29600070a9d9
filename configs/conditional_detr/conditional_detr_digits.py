"""A small Conditional DETR for digits, on a map of stride 8: trains on two CPU cores in minutes."""

from ..common.digits_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.conditional_detr import model
from ..common.models.digits import shrink

shrink(model)
train.ema.warmup = 500
optimizer.lr = 5e-4
