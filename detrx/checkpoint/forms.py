"""Where the state dict is in the files of other trainers, and what their wrappers add to its names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import huggingface
from .messages import CheckpointError

__all__ = ["averaged_weights", "state_dict_in", "without_wrappers"]

# Tried in this order. "module": DeepSpeed; "state_dict": Lightning, mmengine and many others.
_ENTRIES = ("model", "state_dict", "model_state_dict", "module", "network", "net", "weights")
_AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
_PREFIXES = ("module.", "model.")
_COMPILED = "_orig_mod."
_COUNTERS = ("n_averaged", "steps")
"""Beside the weights in the averages of torch's `AveragedModel` and of mmengine."""
_SHOWN = 5


def state_dict_in(content: Any, where: str, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a model in the content of a file, by the names that they have in the model.

    Args:
        where: what the file is called in errors, such as "checkpoint a.pth".
        ema: the averaged weights instead of the trained ones. Trained weights take precedence otherwise.

    Raises:
        CheckpointError: there are none, or something among them is no tensor.
    """
    found = averaged_weights(content) if ema else _find(content, (*_ENTRIES, *_AVERAGED))
    if found is None and ema:
        raise CheckpointError(f"{where} has no averaged (EMA) weights")
    if found is None:
        raise CheckpointError(
            f"{where} is not a checkpoint: it has no state dict. It holds {_described(content)}; expected tensors by "
            'name, at the top level or in an entry such as "model" or "state_dict"'
        )
    weights = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in found.items()
    }
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = "a tensor by name" if isinstance(value, Tensor) else "a tensor"
            raise CheckpointError(
                f"{where} is not a checkpoint of a model: {name!r} is a {type(value).__name__}, not {kind}"
            )
    return without_wrappers(weights)


def averaged_weights(content: Any) -> Mapping[str, Tensor] | None:
    """The averaged (EMA) weights among the entries of a training checkpoint, or None."""
    if not isinstance(content, Mapping):
        return None
    averages = (_find(content[entry], _ENTRIES) for entry in _AVERAGED if entry in content)
    return next((each for each in averages if each is not None), None)


def without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what torch.compile, DistributedDataParallel, Lightning and averages add to the names of a model."""
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in weights.items()}
    while prefix := next((each for each in _PREFIXES if _all_begin(plain, each)), None):
        if prefix == "model." and huggingface.matches(plain):  # their own name
            break
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name not in _COUNTERS}
    return plain


def _all_begin(weights: Mapping[str, Tensor], prefix: str) -> bool:
    names = [name for name in weights if name not in _COUNTERS]
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def _find(content: Any, entries: tuple[str, ...]) -> Mapping | None:
    """The state dict in one of the entries, however deeply nested, or the content itself if it holds tensors."""
    if not isinstance(content, Mapping):
        return None
    for entry in entries:
        if (found := _find(content.get(entry), entries)) is not None:
            return found
    return content if any(isinstance(value, (Tensor, np.ndarray)) for value in content.values()) else None


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [str(key) for key in content]
        return f"a dict with the keys {', '.join(keys[:_SHOWN])}{', ...' * (len(keys) > _SHOWN)}" if keys else "{}"
    if content is None or isinstance(content, (bool, int, float, str)):
        return repr(content)[:80]
    return f"a {type(content).__name__}"
