"""Deformable-DETR++: ResNet-50, 900 queries, 12 epochs."""

from .deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 900
