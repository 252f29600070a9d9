"""The average of several checkpoints of a model."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from detrx.errors import InvalidInputError

from .files import CheckpointError, averaged_weights, read_entries, read_weights

__all__ = ["average_checkpoints", "last_checkpoints"]

_SAVED_BY_TRAINING = re.compile(r"model_(\d+|final)\.pth")
_SHOWN = 5


def last_checkpoints(folder: str | os.PathLike, count: int) -> list[Path]:
    """The checkpoints of the last ``count`` saved iterations in the output folder of a training, oldest first.

    These are ``model_{number}.pth`` and ``model_final.pth``; ``model_best.pth`` is a copy of no certain age.

    Raises:
        CheckpointError: there are fewer, or one of them is damaged or has no "iteration".
    """
    folder = Path(folder)
    files = sorted(file for file in folder.iterdir() if _SAVED_BY_TRAINING.fullmatch(file.name))
    if len(files) < count:
        raise CheckpointError(f"{folder} has {len(files)} checkpoints (model_*.pth), not {count}")
    by_iteration = {}
    for file in files:
        iteration = read_entries(file).get("iteration")
        if not isinstance(iteration, int):
            raise CheckpointError(f"checkpoint {file} does not say of which iteration it is: list the files instead")
        by_iteration[iteration] = file  # model_final comes behind a file of the same iteration
    if len(by_iteration) < count:
        raise CheckpointError(f"{folder} has checkpoints of {len(by_iteration)} iterations, not {count}")
    return [by_iteration[iteration] for iteration in sorted(by_iteration)[-count:]]


def average_checkpoints(
    paths: Sequence[str | os.PathLike], factors: Sequence[float] | None = None, use_ema: bool | None = None
) -> dict[str, Tensor]:
    """The weighted mean of the weights in several files, as Izmailov et al. have it (https://arxiv.org/abs/1803.05407).

    Floating-point tensors are averaged in float64 and get the type that they have in the last file; others (counters,
    flags) are those of the last file. Running statistics of batch normalisation are averaged like the rest, which is
    exact for frozen ones only.

    Args:
        paths: .pth or .safetensors files of one model, the last one last.
        factors: one per file, 0 or more; they are divided by their sum. Default: all alike.
        use_ema: average the averaged (EMA) weights of the checkpoints. Default: if all of them have such weights.

    Raises:
        ValueError: no files, or factors that do not fit.
        CheckpointError: a file is missing, damaged, has infinite numbers, other tensors than the first, or no averaged
            weights although it should.
    """
    if not paths:
        raise InvalidInputError("there are no checkpoints to average")
    shares = _shares(factors, len(paths))
    ema = _have_ema(paths, use_ema)
    first: dict[str, str] = {}
    total: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for path, share in zip(tqdm(paths, desc="checkpoints", disable=None), shares, strict=True):
        weights = read_weights(path, ema=ema)
        forms = {name: _form(tensor) for name, tensor in weights.items()}
        first = first or forms
        if forms != first:
            raise CheckpointError(f"checkpoint {path} is of another model than {paths[0]}: {_difference(forms, first)}")
        kept = weights
        for name, tensor in _floating(weights):
            if not tensor.isfinite().all():
                raise CheckpointError(f"checkpoint {path}: {name} has numbers that are not finite")
            total[name] = tensor.double() * share + total.get(name, 0)
    return {
        name: total[name].to(tensor.dtype) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in kept.items()
    }


def _shares(factors: Sequence[float] | None, count: int) -> list[float]:
    factors = [1.0] * count if factors is None else list(factors)
    if len(factors) != count:
        raise InvalidInputError(f"there must be one factor per checkpoint: got {len(factors)} for {count}")
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors) or not sum(factors):
        raise InvalidInputError(f"factors must be 0 or more, and not all 0: got {factors}")
    return [factor / sum(factors) for factor in factors]


def _have_ema(paths: Sequence[str | os.PathLike], wanted: bool | None) -> bool:
    """Whether to take averaged weights; all files must agree."""
    if wanted is False:
        return False
    without = [path for path in paths if averaged_weights(read_entries(path)) is None]
    if without and (wanted or len(without) < len(paths)):
        raise CheckpointError(
            f"checkpoint {without[0]} has no averaged (EMA) weights{'' if wanted else ', but others have'}; "
            "the trained weights of all are taken with --no-ema"
        )
    return not without


def _floating(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in weights.items() if tensor.is_floating_point())


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'.replace('torch.', '')}"


def _difference(forms: Mapping[str, str], first: Mapping[str, str]) -> str:
    changed = [name for name in first if name in forms and forms[name] != first[name]]
    groups = {
        "missing": sorted(first.keys() - forms.keys()),
        "unexpected": sorted(forms.keys() - first.keys()),
        "of another shape or type": [f"{name} {forms[name]} instead of {first[name]}" for name in changed],
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in groups.items()
        if names
    )
