"""Learning-rate schedules, as multipliers over the whole training (`train.max_iter`).

How many iterations an epoch has depends on the dataset, see `datasets.py`. A schedule of so many epochs is the same for
all: a multiplier of the part of the training that is done.
"""

from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from detrx.d2.config import LazyCall as L
from detrx.d2.solver import WarmupParamScheduler

from .datasets import DATASETS

EPOCH = DATASETS["coco"]["epoch"]


def multi_step(epochs: int, drop: int, warmup_iters: int = 0, epoch: int = EPOCH):
    """Constant, and a tenth of it from epoch `drop` on; for `max_iter = epochs * epoch` iterations."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[drop * epoch], num_updates=epochs * epoch),
        warmup_length=warmup_iters / (epochs * epoch),
        warmup_method="linear",
        warmup_factor=0.001,
    )


def cosine(max_iter: int, warmup_iters: int, end_value: float = 0.0):
    """Linear warm-up over `warmup_iters` iterations, then half a cosine from 1 down to `end_value`."""
    return L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=end_value),
        warmup_length=warmup_iters / max_iter,
        warmup_method="linear",
        warmup_factor=0.001,
    )


DROP = {12: 11, 24: 20, 36: 30, 48: 40, 50: 40, 64: 59}
"""Epochs of a training, and after how many of them the learning rate falls."""

lr_multiplier_12ep = multi_step(12, DROP[12])
lr_multiplier_24ep = multi_step(24, DROP[24])
lr_multiplier_36ep = multi_step(36, DROP[36])
lr_multiplier_50ep = multi_step(50, DROP[50])
