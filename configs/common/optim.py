"""Optimizers. The training script sets `params.model`, and takes `fused` where the device has it."""

import torch

from detrx.d2.config import LazyCall as L
from detrx.d2.solver import get_default_optimizer_params
from detrx.engine.lr_factors import LRFactors

AdamW = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        lr_factor_func=L(LRFactors)(factors={"backbone": 0.1}),
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    fused=True,
)
