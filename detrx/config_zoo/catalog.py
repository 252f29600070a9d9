"""Which configs there are: files, and the variants without a file that a `variants.yaml` beside them lists."""

import difflib
import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrx.errors import InvalidInputError, first_line

from .yaml_files import read_yaml

__all__ = ["Entry", "config_root", "find", "get_config_file", "list_models", "name_of", "similar"]

_TABLE = "variants.yaml"


@dataclass(frozen=True)
class Entry:
    """A config of the zoo.

    Attributes:
        path: its file; for a variant, what would be its file.
        base: for a variant: the file of the config that it is made from.
        changes: for a variant: what differs from `base`: arguments of `variant` in `configs/common/variants.py`, and
            `overrides`.
    """

    path: Path
    base: Path | None = None
    changes: Mapping[str, Any] | None = None

    @property
    def table(self) -> Path:
        """Where a variant is listed."""
        return self.path.with_name(_TABLE)


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


def list_models(pattern: str = "*") -> list[str]:
    """Names of all configs that describe a model, sorted, that match a pattern such as "dino/*" or "*_r50"."""
    names = [name for name in _entries() if name.split("/")[0] != "common"]
    return sorted(n for n in names if any(fnmatch.fnmatchcase(each, pattern) for each in (n, n.removesuffix(".py"))))


def get_config_file(name: str) -> str:
    """Path of the file of a config, given as "dino/dino_r50.py" or "h_detr/h_deformable_detr_r50.py" (the ".py" may be
    left out). Variants have no file; `get_config` loads them, too.

    Raises:
        FileNotFoundError: there is no such config, and the message lists similar names; or it is a variant.
    """
    entry = find(name)
    if entry.base is not None:
        raise FileNotFoundError(
            f"config {name} has no file: it is made from {entry.base} by {entry.table}. "
            "Load it by detrx.model_zoo.get_config, or give its name where a config file is expected"
        )
    return str(entry.path.resolve())


def find(name: str) -> Entry:
    """The config of a name; the ".py" may be left out.

    Raises:
        FileNotFoundError: there is no such config; the message lists similar names.
    """
    wanted = _with_suffix(name)
    known = _entries()
    if wanted in known:
        return known[wanted]
    near = similar(wanted) or sorted(known)
    raise FileNotFoundError(f"no config {wanted!r} in {config_root()} or the projects; similar ones: {', '.join(near)}")


def similar(name: str) -> list[str]:
    """Names of configs that are like one that there is not: those with the same last part first."""
    names = sorted(_entries())
    wanted = "/".join(_with_suffix(name).split("/")[-2:])
    same_file = [each for each in names if each.rsplit("/", 1)[-1] == wanted.rsplit("/", 1)[-1]]
    return list(dict.fromkeys(same_file + difflib.get_close_matches(wanted, names, n=5, cutoff=0.5)))


def name_of(config: str | os.PathLike) -> str | None:
    """The name, with ".py", of a config that is given by name, or as a path that ends in "configs/dino/dino_r50.py" or
    "projects/h_detr/configs/h_deformable_detr_r50.py". Nothing has to be at this path: variants have no file.

    Returns:
        None if the zoo has no such config.
    """
    wanted = _with_suffix(Path(config).as_posix())
    top = config_root().parent
    for name, entry in _entries().items():
        if wanted == name or f"/{wanted}".endswith(f"/{entry.path.relative_to(top).as_posix()}"):
            return name
    return None


def _with_suffix(name: str) -> str:
    return name if name.endswith(".py") else f"{name}.py"


def _entries() -> dict[str, Entry]:
    root = config_root()
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for path in root.parent.glob("projects/*/configs/*.py"):
        paths[f"{path.parents[1].name}/{path.name}"] = path
    entries = {name: Entry(path) for name, path in paths.items()}
    for table in root.glob(f"*/{_TABLE}"):
        entries |= {f"{table.parent.name}/{each.path.name}": each for each in _variants(table)}
    for table in root.parent.glob(f"projects/*/configs/{_TABLE}"):
        entries |= {f"{table.parents[1].name}/{each.path.name}": each for each in _variants(table)}
    return entries


def _variants(table: Path) -> list[Entry]:
    try:
        content = read_yaml(table)
        return [
            Entry(table.with_name(f"{name}.py"), table.with_name(f"{base}.py"), dict(changes))
            for base, variants in content.items()
            for name, changes in variants.items()
        ]
    except (AttributeError, TypeError, ValueError) as error:
        expected = "`config: {variant: {key: value}}`"
        raise InvalidInputError(f"{table} does not list variants as {expected}: {first_line(error)}") from error
