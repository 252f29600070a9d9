"""Reading files of weights without running code from them, and writing them atomically."""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrx.atomic import write_atomically
from detrx.errors import first_line

from .forms import averaged_weights, state_dict_in, without_wrappers
from .inert import load_inert
from .messages import CheckpointError

__all__ = [
    "CheckpointError",
    "averaged_weights",
    "read_entries",
    "read_weights",
    "write_weights",
]

WEIGHT_SUFFIXES = (".safetensors", ".pth")
_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def read_weights(path: str | os.PathLike, allow_pickle: bool = False, ema: bool = False) -> dict[str, Tensor]:
    """The weights in a file or folder, on the CPU.

    Args:
        path: a .safetensors file, a file of `torch.save` or `pickle`, the index of a sharded checkpoint
            (*.index.json), or a folder of transformers' `save_pretrained`.
        allow_pickle: unpickle files that cannot be read otherwise. **This can run arbitrary code**: use it only for
            files whose origin you trust.
        ema: read the averaged weights of a training checkpoint (entry "ema") instead of the trained ones.

    Returns:
        tensors by name; those of the model if it is a training checkpoint. Prefixes that wrappers add to all names,
        such as "module.", are removed.

    Raises:
        CheckpointError: the file does not exist, is damaged, holds no weights, or needs `allow_pickle`.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.name.endswith(".index.json"):
        weights = {name: tensor for shard in _shards(path) for name, tensor in _read(shard, allow_pickle, ema).items()}
    else:
        weights = _read(path, allow_pickle, ema)
    return without_wrappers(weights)


def write_weights(path: str | os.PathLike, weights: Mapping[str, Tensor]) -> None:
    """Write a state dict to a .safetensors file, or as {"model": state dict} to a .pth file.

    Raises:
        CheckpointError: the path has another suffix.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        data = save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata={"format": "pt"})
        write_atomically(path, lambda file: file.write(data))
    elif path.suffix == ".pth":
        write_atomically(path, lambda file: torch.save({"model": dict(weights)}, file))
    else:
        raise CheckpointError(f"weights are written to {' or '.join(WEIGHT_SUFFIXES)} files, not to {path}")


def _file_in(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"folder {folder} has no weights: expected one of {', '.join(_FOLDER_FILES)}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names. They must be in its folder."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not the index of a checkpoint: it has no weight_map") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names a file outside its folder: {name!r}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{len(missing)} of the {len(names)} files that {index} names are missing: {missing[0]}")
    return [index.parent / name for name in names]


def read_entries(path: str | os.PathLike) -> dict[str, Any]:
    """The entries of a training checkpoint, such as "model", "ema" and "iteration"; a .safetensors file has none.

    Tensors are memory-mapped.

    Raises:
        CheckpointError: the file does not exist, is damaged, or is not safe to read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.suffix != ".pth":
        return {}
    content = load_safely(path, mmap=zipfile.is_zipfile(path))
    return dict(content) if isinstance(content, Mapping) else {}


def _read(path: Path, allow_pickle: bool, ema: bool) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        if ema:
            raise CheckpointError(f"checkpoint {path} has no averaged (EMA) weights: .safetensors files hold one model")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
    try:
        content = load_safely(path)
    except CheckpointError:
        if not allow_pickle:
            raise
        content = _unpickle(path)
    return state_dict_in(content, f"checkpoint {path}", ema)


def load_safely(path: Path, mmap: bool = False, where: str = "") -> Any:
    """The content of a file of `torch.save`. Objects of types that are not safe to make are replaced by inert ones.

    Args:
        where: what the file is called in errors; default: its path.

    Raises:
        CheckpointError: the file is damaged, or cannot be read without running code from it.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError:
            if not zipfile.is_zipfile(path):
                raise
            return load_inert(path, mmap)
    except Exception as error:  # damaged files raise nearly anything
        raise CheckpointError(_refusal(where or f"checkpoint {path}", error)) from error


def _refusal(where: str, error: Exception) -> str:
    needs = re.search(r"GLOBAL (\S+)", str(error))
    if needs:
        reason = f"holds an object of type {needs[1]}"
    elif ".tar format" in str(error):
        reason = "is in the tar format of old PyTorch versions"
    elif isinstance(error, pickle.UnpicklingError):
        reason = "is a pickle of more than tensors"
    else:
        return f"{where} is damaged or not a checkpoint: {first_line(error)}"
    return (
        f"{where} {reason}, and reading it can run arbitrary code. If you trust its origin, use "
        "tools/convert_checkpoint.py with --allow-pickle"
    )


def _unpickle(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (RuntimeError, pickle.UnpicklingError):  # not written by torch.save: Detectron2's model zoo
            with open(path, "rb") as file:
                return pickle.load(file, encoding="latin1")
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged or not a checkpoint: {first_line(error)}") from error
