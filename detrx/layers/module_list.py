"""`nn.ModuleList` for type checkers: its modules keep their type."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

__all__ = ["TypedModuleList"]

M = TypeVar("M", bound=nn.Module)

if TYPE_CHECKING:

    class TypedModuleList(nn.ModuleList, Generic[M]):
        def __init__(self, modules: Iterable[M]) -> None: ...
        def __iter__(self) -> Iterator[M]: ...
        def __getitem__(self, index: int) -> M: ...  # type: ignore[override]  # slices are not used

else:
    TypedModuleList = nn.ModuleList
