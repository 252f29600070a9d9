"""Trainers, hooks, and what a training script is made of."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.engine import (
        HookBase,
        TrainerBase,
        create_ddp_model,
        default_argument_parser,
        hooks,
        launch,
    )
else:
    from detrx.d2.embedded import hooks
    from detrx.d2.embedded.defaults import create_ddp_model, default_argument_parser
    from detrx.d2.embedded.launch import launch
    from detrx.d2.embedded.train_loop import HookBase, TrainerBase

__all__ = [
    "HookBase",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "hooks",
    "launch",
]
