"""Learning-rate schedules and parameter groups."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.solver import LRMultiplier, LRScheduler, WarmupParamScheduler
    from detectron2.solver.build import get_default_optimizer_params
else:
    from detrx.d2.embedded.solver import (
        LRMultiplier,
        LRScheduler,
        WarmupParamScheduler,
        get_default_optimizer_params,
    )

__all__ = [
    "LRMultiplier",
    "LRScheduler",
    "WarmupParamScheduler",
    "get_default_optimizer_params",
]
