"""The configs of this repository by name, and config files of users.

Configs in `configs/` are named by their path below it ("dino/dino_r50.py"), those of a project by its name and theirs
("h_detr/h_deformable_detr_r50.py"); the ".py" may be left out. Variants, which have no file, are listed in a
`variants.yaml` and named like a file beside it ("dino/dino_swin_l_36ep.py"). The `pairs.yaml` of a project says which
config is the baseline of which.
"""

import os
from typing import TYPE_CHECKING

from detrx.d2.config import LazyConfig
from detrx.errors import InvalidInputError, first_line

from .catalog import config_root, find, get_config_file, list_models, name_of, similar
from .overrides import apply_overrides
from .pairs import Pair, pair_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "Pair",
    "apply_overrides",
    "config_root",
    "find",
    "get_config",
    "get_config_file",
    "list_models",
    "name_of",
    "pair_of",
    "read_config",
    "similar",
]


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
    changes = dict(entry.changes or {})
    overrides = changes.pop("overrides", [])
    try:
        variant(cfg, **changes)
        return apply_overrides(cfg, overrides)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{where}: {first_line(error)}") from error


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
        hint = f", and there is no config {path!r} in the model zoo; similar ones: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"config file {path} does not exist{hint}")
    return get_config(name)
