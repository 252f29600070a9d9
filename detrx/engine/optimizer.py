"""Optimizers of configs, with their fused implementation where the device has it."""

import logging
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detrx.d2.config import instantiate
from detrx.engine.config import call_parameters

__all__ = ["build_optimizer", "load_optimizer_state", "step_if_finite"]

logger = logging.getLogger(__name__)

_IMPLEMENTATION = ("fused", "foreach")  # settings of parameter groups that say how, not what, to compute


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config for the parameters of a model.

    ``fused=True`` in a config is a wish: where the optimizer has no such implementation for the device of the model, it
    takes its default one. A config without ``fused`` is left as it is.

    Args:
        cfg: describes the call of the optimizer; ``params.model`` is set.
        model: on the device it is trained on.
    """
    cfg.params.model = model
    if cfg.get("fused") and (reason := _no_fused(cfg, model)):
        logger.warning("The optimizer has no fused implementation here (%s): it takes another one", reason)
        return instantiate({key: value for key, value in cfg.items() if key != "fused"})
    return instantiate(cfg)


def _no_fused(cfg: DictConfig, model: nn.Module) -> str:
    """Why an optimizer cannot be fused, found out by a step of it, or an empty string."""
    if not {"fused", "**"} & set(call_parameters(cfg)):
        return "it has no argument 'fused'"
    for device, dtype in {(p.device, p.dtype) for p in model.parameters() if p.requires_grad}:
        parameter = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        parameter.grad = torch.zeros_like(parameter)
        try:
            instantiate({**cfg, "params": [parameter]}).step()
        except RuntimeError as error:  # NotImplementedError, too
            return str(error)
    return ""


def load_optimizer_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Load the state of an optimizer, which goes on with its own implementation (fused or not) whatever that of the
    saved one was. Raises ValueError if its parameter groups are others."""
    saved = state_dict["param_groups"]
    if len(saved) == len(optimizer.param_groups):
        own = [{key: group[key] for key in _IMPLEMENTATION if key in group} for group in optimizer.param_groups]
        saved = [{**group, **settings} for group, settings in zip(saved, own, strict=True)]
    optimizer.load_state_dict({**state_dict, "param_groups": saved})


def step_if_finite(optimizer: torch.optim.Optimizer, values: Tensor) -> None:
    """Take a step, unless a value is infinite or NaN; the host does not wait to know.

    Only fused optimizers can leave out a step on the device; others take it.

    Args:
        values: (N,), on the device of the parameters.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.step()
        return
    found_inf = values.isfinite().all().logical_not().float()
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # as GradScaler does; optimizers do not declare it
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
