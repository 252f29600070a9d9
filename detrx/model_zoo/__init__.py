"""The configs of this repository: of `configs/` by their path below it, of a project by its name and theirs."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from detrx.d2.config import LazyConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["config_root", "get_config", "get_config_file"]


def config_root() -> Path:
    """The `configs` folder: packaged with an installed detrx, else the one of the checkout.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parents[1] / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no configs folder in {package} or {package.parents[1]}; install detrx from a checkout with `pip install -e .`"
    )


def get_config_file(name: str) -> str:
    """Path of a config, given as "dino/dino_r50.py" or "h_detr/h_deformable_detr_r50.py" (the ".py" may be left out).

    Raises:
        FileNotFoundError: there is no such config; the message lists similar names.
    """
    root = config_root()
    wanted = name if name.endswith(".py") else f"{name}.py"
    known = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py")}
    for path in root.parent.glob("projects/*/configs/*.py"):
        known[f"{path.parents[1].name}/{path.name}"] = path
    if wanted in known:
        return str(known[wanted].resolve())
    names = sorted(known)
    same_file = [k for k in names if k.rsplit("/", 1)[-1] == wanted.rsplit("/", 1)[-1]]
    near = list(dict.fromkeys(same_file + difflib.get_close_matches(wanted, names, n=5, cutoff=0.5))) or names
    raise FileNotFoundError(f"no config {wanted!r} in {root} or the projects; similar ones: {', '.join(near)}")


def get_config(name: str) -> "DictConfig":
    """Load a config, given as for `get_config_file`, as `LazyConfig.load` does."""
    return LazyConfig.load(get_config_file(name))
