"""Building the optimizer of a config, fused if the device supports it, and stepping without waiting for the device."""

import copy
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
        cfg: the ``LazyCall`` of the optimizer, which is not changed. Its ``params`` get the model.
        model: already on the device it is trained on.

    Raises:
        InvalidInputError: the config does not say which parameters to optimize.
    """
    if not isinstance(cfg.get("params"), DictConfig):
        raise InvalidInputError(
            "optimizer.params is missing; expected a call such as {_target_: "
            "detrx.d2.solver.get_default_optimizer_params}, which gets the model"
        )
    cfg = copy.deepcopy(cfg)
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


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    state_dict: dict[str, Any],
    names: list[str] | None = None,
    saved_names: list[str] | None = None,
) -> dict[str, set[tuple[Any, Any]]]:
    """Load what an optimizer has learned about its parameters, such as moments; it keeps its own settings.

    A learning rate that is the same as at the beginning of the saved training has the value to which its schedule had
    brought it.

    Args:
        names: of the parameters, in the order of the parameter groups. With both, parameters may be grouped otherwise.
        saved_names: the same of the saved optimizer.

    Returns:
        the settings that differ from the saved ones: name -> pairs (saved, own).

    Raises:
        ValueError: the saved optimizer has other parameters or, without names, other parameter groups.
    """
    own, saved = optimizer.state_dict(), state_dict
    places = _places(own["param_groups"], saved["param_groups"], names, saved_names)
    groups_of = {index: group for group in saved["param_groups"] for index in group["params"]}
    changes: dict[str, set[tuple[Any, Any]]] = {}
    groups = []
    for group in own["param_groups"]:
        before = [groups_of[places[index]] for index in group["params"]]
        merged = {**before[0], **group} if before else dict(group)
        for key in group.keys() - {"params", "initial_lr", *_IMPLEMENTATION}:
            pairs = {(_setting(each, key), _setting(group, key)) for each in before if key in each}
            differing = {(a, b) for a, b in pairs if a != b}
            if differing:
                changes.setdefault(key, set()).update(differing)
            elif key == "lr" and before:
                merged["lr"] = before[0]["lr"]
            if key == "lr" and "initial_lr" in merged:
                merged["initial_lr"] = _setting(group, key)
        groups.append(merged)
    state = {index: saved["state"][place] for index, place in places.items() if place in saved["state"]}
    optimizer.load_state_dict({**saved, "state": state, "param_groups": groups})
    return changes


def _places(
    own: list[dict[str, Any]], saved: list[dict[str, Any]], names: list[str] | None, saved_names: list[str] | None
) -> dict[int, int]:
    """Index of each parameter -> index of the same one in the saved state."""
    own_indices = [index for group in own for index in group["params"]]
    saved_indices = [index for group in saved for index in group["params"]]
    if names is None or saved_names is None:
        if len(own) != len(saved):
            raise InvalidInputError(
                f"it has {len(saved)} parameter groups, and the optimizer of this config {len(own)}"
            )
        for number, (a, b) in enumerate(zip(own, saved, strict=True)):
            if len(a["params"]) != len(b["params"]):
                raise InvalidInputError(
                    f"its parameter group {number} has {len(b['params'])} parameters, and that of this config "
                    f"{len(a['params'])}"
                )
        return dict(zip(own_indices, saved_indices, strict=True))
    if new := sorted(set(names) - set(saved_names)):
        raise InvalidInputError(f"it has not trained {new[0]}, nor {len(new) - 1} other parameters of this config")
    if gone := sorted(set(saved_names) - set(names)):
        raise InvalidInputError(
            f"it has trained {gone[0]} and {len(gone) - 1} other parameters that this config does not"
        )
    places = dict(zip(saved_names, saved_indices, strict=True))
    return {index: places[name] for index, name in zip(own_indices, names, strict=True)}


def _setting(group: dict[str, Any], key: str) -> Any:
    """A setting of a parameter group as it was when the training began, in a form that can be compared."""
    value = group.get("initial_lr", group["lr"]) if key == "lr" else group[key]
    if isinstance(value, Tensor):
        value = value.item()
    return tuple(value) if isinstance(value, list) else value


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
