"""Hybrid epoch scheme on digits: one-to-many matching of all 200 queries for the first two thirds of the training."""

from detrx.d2.config import LazyCall as L
from detrx.projects.h_detr import HybridEpoch

from ....configs.deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 200
model.methods = [L(HybridEpoch)(max_iter="${train.max_iter}", rho=2 / 3, copies=10)]
