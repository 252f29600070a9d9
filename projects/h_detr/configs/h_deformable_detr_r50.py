"""H-Deformable-DETR: Deformable-DETR++ with 1500 one-to-many queries in training; ResNet-50, 300 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridBranch

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods = [L(HybridBranch)(num_queries=1500, copies=6, weight=1.0)]
