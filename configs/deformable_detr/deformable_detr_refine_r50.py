"""Deformable DETR with iterative box refinement: every layer has its own heads and starts from the boxes before it."""

from .deformable_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.decoder.refine_boxes = True
model.decoder.heads.shared = False
