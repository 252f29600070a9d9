"""Reading YAML that people write, in which a key that occurs twice is a mistake and not the last one's right."""

import os
from pathlib import Path
from typing import Any

import yaml

from detrx.errors import InvalidInputError

__all__ = ["read_yaml"]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the base is chosen here
    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key_node.value!r} twice", key_node.start_mark)
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike) -> Any:
    """The content of a YAML file in UTF-8.

    Raises:
        InvalidInputError: it is not YAML, or a mapping in it has a key twice; the message names file and line.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{os.fspath(path)} cannot be read as YAML: {' '.join(str(error).split())}") from error
