"""Hybrid layer scheme on digits: one-to-many matching of all 200 queries in the first two of three decoder layers."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridLayer

from ....configs.deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 200
model.methods = [L(HybridLayer)(num_layers=2, copies=10)]
