"""Conditional DETR with a thin backbone on large digits: the student of the distillation in `projects/d3etr`."""

from ..common.models.digits import use_student_backbone
from .conditional_detr_digits import dataloader, lr_multiplier, model, optimizer, train

use_student_backbone(model)
dataloader.train.dataset.names = "digits_large_train"
dataloader.test.dataset.names = "digits_large_val"
