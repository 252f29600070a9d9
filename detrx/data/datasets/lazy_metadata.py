"""Metadata of datasets whose files are not looked at before something is asked about them."""

from collections.abc import Callable, Mapping
from typing import Any

from detrx.d2.data import Metadata


class LazyMetadata(Metadata):
    """Metadata of which some values are computed whenever they are asked for.

    Args:
        lazy: name -> function that returns the value; it raises AttributeError where there is none (yet).
        facts: the other values.
    """

    def __init__(self, lazy: Mapping[str, Callable[[], Any]], **facts: Any) -> None:
        super().__init__(lazy=dict(lazy), **facts)

    def __getattr__(self, key: str) -> Any:
        lazy = self.__dict__.get("lazy", {})
        return lazy[key]() if key in lazy else super().__getattr__(key)
