"""Hybrid layer scheme: one-to-many matching of all 1800 queries in the first four of six decoder layers."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridLayer

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 1800
model.methods = [L(HybridLayer)(num_layers=4, copies=10)]
