"""The configs of this repository, by their path below `configs/`."""

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
    """Path of a config, given as "deformable_detr/digits.py" (the ".py" may be left out).

    Raises:
        FileNotFoundError: there is no such config; the message lists similar names.
    """
    root = config_root()
    wanted = name if name.endswith(".py") else f"{name}.py"
    path = (root / wanted).resolve()
    if path.is_file() and root.resolve() in path.parents:
        return str(path)
    known = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    same_file = [k for k in known if k.rsplit("/", 1)[-1] == wanted.rsplit("/", 1)[-1]]
    near = list(dict.fromkeys(same_file + difflib.get_close_matches(wanted, known, n=5, cutoff=0.5))) or known
    raise FileNotFoundError(f"no config {wanted!r} in {root}; similar ones: {', '.join(near)}")


def get_config(name: str) -> "DictConfig":
    """Load a config, given as for `get_config_file`, as `LazyConfig.load` does."""
    return LazyConfig.load(get_config_file(name))
