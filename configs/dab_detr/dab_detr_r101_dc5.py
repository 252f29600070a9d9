"""DAB-DETR: ResNet-101 DC5, 12 epochs."""

from .dab_detr_r101 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.model_args = dict(output_stride=16)
