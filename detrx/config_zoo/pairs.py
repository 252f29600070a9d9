"""Which config is the baseline of which: the `pairs.yaml` beside the configs of a project."""

from dataclasses import dataclass

from detrx.errors import InvalidInputError

from .catalog import find
from .yaml_files import read_yaml

__all__ = ["Pair", "pair_of"]

_TABLE = "pairs.yaml"


@dataclass(frozen=True)
class Pair:
    """A config with a method, and the same config without it.

    Attributes:
        baseline: name of the config without the method.
        sets: keys that the method sets beside its own entries in lists, such as `model.methods`.
    """

    baseline: str
    sets: tuple[str, ...] = ()


def pair_of(name: str) -> Pair | None:
    """The baseline of a config, given as `get_config` takes it, and what the method sets.

    Returns:
        None if the config has no method of a project: a detector, or a baseline.

    Raises:
        FileNotFoundError: there is no such config.
        InvalidInputError: the table that lists the pairs of the project cannot be read.
    """
    path = find(name).path
    table = path.with_name(_TABLE)
    if not table.is_file():
        return None
    content = read_yaml(table)
    try:
        pairs = {config: Pair(pair["baseline"], tuple(pair.get("sets", ()))) for config, pair in content.items()}
    except (AttributeError, KeyError, TypeError) as error:
        expected = "`config: {baseline: folder/name, sets: [key, ...]}`"
        raise InvalidInputError(f"{table} does not list pairs as {expected}") from error
    return pairs.get(path.stem)
