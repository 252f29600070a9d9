"""Load the configs of this repository, and build their models, by name.

A config in `configs/` is named by its path in that folder ("dino/dino_r50.py"), a config of a project by project and
file ("h_detr/h_deformable_detr_r50.py"). The ".py" is optional.
"""

import difflib
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrx.d2.config import LazyConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

__all__ = ["config_root", "get", "get_config", "get_config_file", "list_models"]


def config_root() -> Path:
    """The `configs` folder of an installed detrx, or else of the checkout.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parents[1] / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no configs folder in {package} or {package.parents[1]}; install detrx from a checkout with `pip install -e .`"
    )


def get_config_file(name: str) -> str:
    """Path of a config with a name such as "dino/dino_r50.py" or "h_detr/h_deformable_detr_r50.py" (".py" is optional).

    Raises:
        FileNotFoundError: there is no such config; the message lists similar names.
    """
    wanted = name if name.endswith(".py") else f"{name}.py"
    known = _config_files()
    if wanted in known:
        return str(known[wanted].resolve())
    names = sorted(known)
    same_file = [k for k in names if k.rsplit("/", 1)[-1] == wanted.rsplit("/", 1)[-1]]
    near = list(dict.fromkeys(same_file + difflib.get_close_matches(wanted, names, n=5, cutoff=0.5))) or names
    raise FileNotFoundError(f"no config {wanted!r} in {config_root()} or the projects; similar ones: {', '.join(near)}")


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of all model configs that match a pattern such as "dino/*" or "*_r50"."""
    names = [name for name in _config_files() if name.split("/")[0] != "common"]
    return sorted(n for n in names if any(fnmatch.fnmatchcase(each, pattern) for each in (n, n.removesuffix(".py"))))


def get_config(name: str) -> "DictConfig":
    """Load a config with `LazyConfig.load`, by its name (see `get_config_file`)."""
    return LazyConfig.load(get_config_file(name))


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
        name: name of the config, see `get_config_file`.
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
    from detrx.engine.config import load_config
    from detrx.engine.trained import build_model, load_model

    cfg = load_config(get_config_file(name), list(overrides))
    if weights is not None:
        return load_model(cfg, os.fspath(weights), device)
    return build_model(cfg, device, pretrained_backbone)


def _config_files() -> dict[str, Path]:
    root = config_root()
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for path in root.parent.glob("projects/*/configs/*.py"):
        files[f"{path.parents[1].name}/{path.name}"] = path
    return files
