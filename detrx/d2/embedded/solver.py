"""Learning-rate schedules over fvcore's parameter schedulers, and optimizer parameter groups."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from detrx.errors import InvalidInputError

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler", "get_default_optimizer_params"]

_NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class WarmupParamScheduler(CompositeParamScheduler):
    """Another scheduler with a warm-up in front of it.

    Args:
        scheduler: what follows the warm-up.
        warmup_factor: start of the warm-up, relative to the first value of ``scheduler``.
        warmup_length: length of the warm-up, relative to the whole training, in [0, 1].
        warmup_method: "linear" up to the value where ``scheduler`` takes over, or "constant".
        rescale_interval: run the whole of ``scheduler`` after the warm-up, instead of the part that is left of it.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        elif warmup_method == "linear":
            warmup = LinearParamScheduler(start, scheduler(0.0 if rescale_interval else warmup_length))
        else:
            raise InvalidInputError(f"Unknown warmup method: {warmup_method}; expected 'linear' or 'constant'")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiply the initial learning rate of every parameter group by a schedule.

    Args:
        optimizer: its groups' present learning rates are the initial ones, unless ``last_iter`` is given.
        multiplier: schedule over the training, from 0 to 1.
        max_iter: length of the training.
        last_iter: iteration to continue after; -1: start.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ):
        if not isinstance(multiplier, ParamScheduler):
            raise InvalidInputError(f"LRMultiplier(multiplier=) must be an fvcore ParamScheduler, got {multiplier}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of all trainable parameters, as few as their different settings allow.

    Args:
        model: parameters that do not require gradients are left out, shared ones are taken once.
        base_lr: learning rate; None leaves it to the optimizer.
        weight_decay: None leaves it to the optimizer.
        weight_decay_norm: weight decay of the parameters of normalisation layers.
        bias_lr_factor: factor on the learning rate of parameters called "bias"; needs ``base_lr``.
        weight_decay_bias: weight decay of parameters called "bias".
        lr_factor_func: from full parameter name to a factor on its learning rate; needs ``base_lr``.
        overrides: settings by last part of the parameter name; they win over everything else.
    """
    overrides = dict(overrides or {})
    bias_settings = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise InvalidInputError("bias_lr_factor requires base_lr")
        bias_settings["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_settings["weight_decay"] = weight_decay_bias
    if bias_settings:
        if "bias" in overrides:
            raise InvalidInputError("Conflicting overrides for 'bias'")
        overrides["bias"] = bias_settings
    if lr_factor_func is not None and base_lr is None:
        raise InvalidInputError("lr_factor_func requires base_lr")

    groups: dict[tuple, dict[str, Any]] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            given = {"lr": base_lr, "weight_decay": weight_decay}
            settings = {key: value for key, value in given.items() if value is not None}
            if weight_decay_norm is not None and isinstance(module, _NORM_LAYERS):
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(overrides.get(name, {}))
            group = groups.setdefault(tuple(settings.items()), {**settings, "params": []})
            group["params"].append(parameter)
    return list(groups.values())
