"""DINO++ with H-DETR's branch of 1500 one-to-many queries: ResNet-50, 4 levels, 900 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridBranch

from .baseline_dino_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(HybridBranch)(num_queries=1500, copies=6, weight=1.0))
