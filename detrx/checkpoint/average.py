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
from .messages import differences

__all__ = ["average_checkpoints", "last_checkpoints"]

_SAVED_BY_TRAINING = re.compile(r"model_(\d+|final)\.pth")


def last_checkpoints(folder: str | os.PathLike, count: int) -> list[Path]:
    """The checkpoints of the last ``count`` saved iterations in the output folder of a training, oldest first.

    These are ``model_{number}.pth`` and ``model_final.pth``, not ``model_best.pth``, which can be of any iteration.

    Raises:
        CheckpointError: there are fewer, or one of them is damaged or has no "iteration".
    """
    folder = Path(folder)
    files = sorted(file for file in folder.iterdir() if _SAVED_BY_TRAINING.fullmatch(file.name))
    if len(files) < count:
        raise CheckpointError(f"{folder}: expected {count} or more checkpoints (model_*.pth), found {len(files)}")
    by_iteration = {}
    for file in files:
        iteration = read_entries(file).get("iteration")
        if not isinstance(iteration, int):
            raise CheckpointError(f"checkpoint {file} does not say which iteration it is from: list the files instead")
        by_iteration[iteration] = file  # model_final comes last and replaces a file of the same iteration
    if len(by_iteration) < count:
        raise CheckpointError(f"{folder} has checkpoints of {len(by_iteration)} iterations, not {count}")
    return [by_iteration[iteration] for iteration in sorted(by_iteration)[-count:]]


def average_checkpoints(
    paths: Sequence[str | os.PathLike], factors: Sequence[float] | None = None, use_ema: bool | None = None
) -> dict[str, Tensor]:
    """The weighted mean of the weights in several files (Izmailov et al., arXiv 1803.05407).

    Floating-point tensors are averaged in float64 and then converted to their type in the last file. All others
    (counters, flags) are taken from the last file. Running statistics of batch normalisation are averaged like weights,
    which is exact only if they are frozen.

    Args:
        paths: .pth or .safetensors files of one model, oldest first.
        factors: one per file, 0 or more; they are divided by their sum. Default: equal factors.
        use_ema: average the EMA weights of the checkpoints. Default: whether all of them have such weights.

    Raises:
        ValueError: there are no files, or the factors do not fit.
        CheckpointError: a file is missing or damaged, has values that are not finite or other tensors than the first
            file, or lacks the EMA weights that were asked for.
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
            raise CheckpointError(
                f"checkpoint {path} is from another model than {paths[0]}: {_difference(forms, first)}"
            )
        kept = weights
        for name, tensor in _floating(weights):
            if not tensor.isfinite().all():
                raise CheckpointError(f"checkpoint {path}: {name} has values that are not finite")
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
    """Whether to average the EMA weights: all files must have them, or none."""
    if wanted is False:
        return False
    without = [path for path in paths if averaged_weights(read_entries(path)) is None]
    if without and (wanted or len(without) < len(paths)):
        raise CheckpointError(
            f"checkpoint {without[0]} has no averaged (EMA) weights{'' if wanted else ', but others do'}; "
            "--no-ema takes the trained weights of all"
        )
    return not without


def _floating(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in weights.items() if tensor.is_floating_point())


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'.replace('torch.', '')}"


def _difference(forms: Mapping[str, str], first: Mapping[str, str]) -> str:
    changed = [name for name in first if name in forms and forms[name] != first[name]]
    return differences(
        {
            "missing": sorted(first.keys() - forms.keys()),
            "unexpected": sorted(forms.keys() - first.keys()),
            "of another shape or type": [f"{name} {forms[name]} instead of {first[name]}" for name in changed],
        }
    )
