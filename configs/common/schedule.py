"""Learning-rate schedules, as multipliers over the whole training (`train.max_iter`).

The multi-step ones are named after COCO epochs at batch size 16, 7500 iterations each.
"""

from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from detrx.d2.config import LazyCall as L
from detrx.d2.solver import WarmupParamScheduler

EPOCH = 7500


def multi_step(epochs: int, drop: int, warmup_iters: int = 0):
    """Constant, and a tenth of it from epoch `drop` on; for `max_iter = epochs * 7500`."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[drop * EPOCH], num_updates=epochs * EPOCH),
        warmup_length=warmup_iters / (epochs * EPOCH),
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


lr_multiplier_12ep = multi_step(epochs=12, drop=11)
lr_multiplier_24ep = multi_step(epochs=24, drop=20)
lr_multiplier_36ep = multi_step(epochs=36, drop=30)
lr_multiplier_50ep = multi_step(epochs=50, drop=40)
