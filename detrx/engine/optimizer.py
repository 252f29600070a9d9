"""Building the optimizer of a config, fused if the device supports it, and stepping without waiting for the device."""

import logging
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detrx.d2.config import instantiate
from detrx.engine.config import call_parameters
from detrx.errors import InvalidInputError

__all__ = ["build_optimizer", "load_optimizer_state", "step_if_finite"]

logger = logging.getLogger(__name__)

_IMPLEMENTATION = ("fused", "foreach")  # settings of parameter groups that do not affect what is computed


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config for the parameters of a model.

    If the config has ``fused=True`` but the optimizer has no fused implementation for the device of the model, the
    default implementation is used instead.

    Args:
        cfg: the ``LazyCall`` of the optimizer; its ``params.model`` is set.
        model: already on the device it is trained on.

    Raises:
        InvalidInputError: the config does not say which parameters to optimize.
    """
    if not isinstance(cfg.get("params"), DictConfig):
        raise InvalidInputError(
            "optimizer.params is missing; expected a call such as {_target_: "
            "detrx.d2.solver.get_default_optimizer_params}, which gets the model"
        )
    cfg.params.model = model
    if cfg.get("fused") and (reason := _no_fused(cfg, model)):
        logger.warning("The optimizer has no fused implementation here (%s): the default one is used", reason)
        return instantiate({key: value for key, value in cfg.items() if key != "fused"})
    return instantiate(cfg)


def _no_fused(cfg: DictConfig, model: nn.Module) -> str:
    """Why an optimizer cannot be fused, or an empty string. Takes a step with a dummy parameter to find out."""
    if not {"fused", "**"} & set(call_parameters(cfg)):
        return "it has no argument 'fused'"
    for device, dtype in {(p.device, p.dtype) for p in model.parameters() if p.requires_grad}:
        parameter = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        parameter.grad = torch.zeros_like(parameter)
        try:
            instantiate({**cfg, "params": [parameter]}).step()
        except RuntimeError as error:  # includes NotImplementedError
            return str(error)
    return ""


def load_optimizer_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Load the state of an optimizer, which keeps its own implementation (fused or not).

    Raises:
        ValueError: the saved optimizer has other parameter groups.
    """
    saved = state_dict["param_groups"]
    if len(saved) == len(optimizer.param_groups):
        own = [{key: group[key] for key in _IMPLEMENTATION if key in group} for group in optimizer.param_groups]
        saved = [{**group, **settings} for group, settings in zip(saved, own, strict=True)]
    optimizer.load_state_dict({**state_dict, "param_groups": saved})


def step_if_finite(optimizer: torch.optim.Optimizer, values: Tensor) -> None:
    """Take a step unless a value is infinite or NaN, without making the host wait for the device.

    Only fused optimizers can skip a step on the device; others always take it.

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
