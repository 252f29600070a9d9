"""Hybrid branch on photographs: 300 one-to-many queries beside the 100 of the small Deformable-DETR++."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridBranch

from ....configs.deformable_detr.deformable_detr_photos import dataloader, lr_multiplier, model, optimizer, train

model.methods = [L(HybridBranch)(num_queries=300, copies=6, weight=1.0)]
