"""Reading the tensors of a checkpoint beside objects of types that must not be made."""

from os import PathLike
from typing import Any

import torch


class Inert:
    """Stands for an object in a file: takes what its type would take, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass


def load_inert(path: str | PathLike, mmap: bool = False) -> Any:
    """Like `torch.load` with `weights_only`, on the CPU, but objects of unknown types become `Inert` ones.

    Nothing but torch's own unpickler for weights reads the file; what it blocks (`os`, `sys`) stays an error.

    Raises:
        pickle.UnpicklingError: the file cannot be read in this way.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
