"""The models of this repository by the names of their configs, such as "dino/dino_r50.py"; see `detrx.config_zoo`."""

import os
from collections.abc import Sequence

from torch import nn

from detrx.config_zoo import config_root, get_config, get_config_file, list_models, pair_of
from detrx.engine.config import override_config
from detrx.engine.trained import build_model, load_model

__all__ = ["baseline", "config_root", "get", "get_config", "get_config_file", "list_models"]


def baseline(name: str) -> str | None:
    """The config to compare a method's config with: the same without the method, such as "mr_detr/baseline_dino_r50".

    Returns:
        None for the config of a detector without a method.

    Raises:
        FileNotFoundError: there is no such config.
    """
    pair = pair_of(name)
    return None if pair is None else pair.baseline


def get(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    device: str = "cpu",
    pretrained_backbone: bool = False,
    overrides: Sequence[str] = (),
) -> nn.Module:
    """The model of a config, in evaluation mode.

    Args:
        name: name of the config, see `get_config`.
        weights: checkpoint to load (averaged weights are used if it has any); None: random weights.
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.
        pretrained_backbone: without `weights`, load the backbone weights that the config names; this needs a network or
            a filled cache.
        overrides: `key=value` overrides of the config.

    Raises:
        FileNotFoundError: there is no such config.
        ConfigError: an override does not fit the config.
        CheckpointError: there is no such checkpoint, or it is of another model.
    """
    cfg = override_config(get_config(name), list(overrides), f"config {name}")
    if weights is not None:
        return load_model(cfg, os.fspath(weights), device)
    return build_model(cfg, device, pretrained_backbone)
