"""Recording what attention modules are called with, from outside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from torch import nn

R = TypeVar("R")
"""What is recorded of a call."""


class Recorded(nn.Module, Generic[R]):
    """A module whose calls can be recorded.

    Attributes:
        record: list to which every call appends its inputs (see `recording`), or None.
    """

    record: list[R] | None = None


@contextmanager
def recording(modules: Sequence[Recorded[R]]) -> Iterator[list[list[R]]]:
    """Context that records the inputs of every call of some attention modules, and returns a list for each module.

    Attention itself is computed as usual. Attention maps can be computed from the records (`AttentionInputs.weights`),
    and sampling points (`SamplingInputs`). With activation checkpointing only the first of the two runs is recorded.
    """
    records: list[list[R]] = [[] for _ in modules]
    for module, record in zip(modules, records, strict=True):
        module.record = record
    try:
        yield records
    finally:
        for module in modules:
            module.record = None
