"""The configs of this repository, and their models, by name.

Those of `configs/` are named by their path below it ("dino/dino_r50.py"), those of a project by its name and theirs
("h_detr/h_deformable_detr_r50.py"); the ".py" may be left out. Variants, which have no file, are listed in a
`variants.yaml` and named like a file beside it ("dino/dino_swin_l_36ep.py").
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detrx.d2.config import LazyConfig
from detrx.errors import InvalidInputError
from detrx.model_zoo.catalog import config_root, find, get_config_file, list_models, name_of, similar

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

__all__ = ["config_root", "find", "get", "get_config", "get_config_file", "list_models", "name_of", "read_config"]


def get_config(name: str) -> "DictConfig":
    """Load a config, given as "dino/dino_r50.py" or "dino/dino_swin_l_36ep" (the ".py" may be left out).

    Raises:
        FileNotFoundError: there is no such config; the message lists similar names.
        InvalidInputError: what a `variants.yaml` says of it cannot be done.
    """
    entry = find(name)
    if entry.base is None:
        return LazyConfig.load(str(entry.path.resolve()))
    where = f"{entry.table}: {entry.path.stem}"
    if not entry.base.is_file():
        raise InvalidInputError(f"{where}: there is no {entry.base.name} beside it")
    cfg = LazyConfig.load(str(entry.base.resolve()))
    variant = LazyConfig.load(str(config_root() / "common" / "variants.py"), "variant")
    changes = dict(entry.changes)
    overrides = changes.pop("overrides", [])
    try:
        variant(cfg, **changes)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{where}: {error}") from error
    return LazyConfig.apply_overrides(cfg, overrides)


def read_config(config: str | os.PathLike) -> "DictConfig":
    """Load a config: a file, or one of the zoo, given as `name_of` takes it.

    Raises:
        FileNotFoundError: there is no such file, and the zoo has no such config.
        SyntaxError, ImportError, ValueError: the file cannot be read as a config.
    """
    path = os.fspath(config)
    if os.path.isfile(path) or "://" in path:
        return LazyConfig.load(path)
    name = name_of(path)
    if name is None:
        near = similar(path)
        hint = f", and no config of the zoo has that name; similar ones: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"config file {path} does not exist{hint}")
    return get_config(name)


def get(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    device: str = "cpu",
    pretrained_backbone: bool = False,
    overrides: Sequence[str] = (),
) -> "nn.Module":
    """The model of a config, in evaluation mode.

    Args:
        name: as for `get_config`.
        weights: checkpoint to load (its averaged weights, if it has any); None: random weights.
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.
        pretrained_backbone: without `weights`, whether the backbone loads those that its config names, which needs the
            network or a filled cache.
        overrides: `key=value` changes to the config.

    Raises:
        FileNotFoundError: there is no such config.
        ConfigError: an override does not fit the config.
        CheckpointError: there is no such checkpoint, or it is of another model.
    """
    from detrx.engine.config import override_config
    from detrx.engine.trained import build_model, load_model

    cfg = override_config(get_config(name), list(overrides), f"config {name}")
    if weights is not None:
        return load_model(cfg, os.fspath(weights), device)
    return build_model(cfg, device, pretrained_backbone)
