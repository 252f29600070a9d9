"""Conditional DETR with a wide, deep backbone on large digits: the teacher of the distillation in `projects/d3etr`."""

from ..common.models.digits import use_teacher_backbone
from .conditional_detr_digits import dataloader, lr_multiplier, model, optimizer, train

use_teacher_backbone(model)
dataloader.train.dataset.names = "digits_large_train"
dataloader.test.dataset.names = "digits_large_val"
