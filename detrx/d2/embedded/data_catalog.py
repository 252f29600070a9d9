"""The datasets by name: how to load them (`DatasetCatalog`) and what is known about them (`MetadataCatalog`)."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from detrx.errors import UnknownNameError

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _Catalog(UserDict):
    def list(self) -> list[str]:
        """All names."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        self.pop(name)


class _DatasetCatalog(_Catalog):
    """Dataset name -> function without arguments that returns its dataset dicts."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        assert callable(func), f"Dataset {name!r} is registered with {func!r}, which is not a function"
        assert name not in self, f"Dataset {name!r} is already registered"
        self[name] = func

    def get(self, name: str) -> list[dict]:  # type: ignore[override]  # Detectron2's API, not that of a dict
        """Load the dataset. Raises ``KeyError`` for a name that is not registered."""
        if name not in self:
            raise UnknownNameError(
                f"Dataset {name!r} is not registered; registered are: {', '.join(self.keys()) or 'none'}"
            )
        return self[name]()


class Metadata(SimpleNamespace):
    """Facts about one dataset, as attributes. A fact that is set cannot be changed to another value."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(f"Dataset {self.name!r} has no metadata {key!r}; it has {', '.join(vars(self)) or 'none'}")

    def __setattr__(self, key: str, value: Any) -> None:
        if hasattr(self, key):
            old = getattr(self, key)
            assert old == value, f"Metadata {key!r} of dataset {self.name!r} is {old!r} and cannot become {value!r}"
        else:
            super().__setattr__(key, value)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes and return self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Dataset name -> its only `Metadata` object, made when first asked for."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]  # Detectron2's API, not that of a dict
        assert name, "A dataset needs a name"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
