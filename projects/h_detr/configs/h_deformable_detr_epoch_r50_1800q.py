"""Hybrid epoch scheme: one-to-many matching of all 1800 queries for the first two thirds of the training."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridEpoch

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 1800
model.methods = [L(HybridEpoch)(max_iter="${train.max_iter}", rho=2 / 3, copies=10)]
