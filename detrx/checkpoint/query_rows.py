"""Weights of a detector with more queries than the model, of which only those of the first queries are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["MoreQueries", "first_queries", "more_queries"]


@runtime_checkable
class _WithQueries(Protocol):
    """A module that knows which of its parameters have rows for each query, and how many rows a query has."""

    def rows_per_query(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class MoreQueries:
    """A module of the model that has more queries in a checkpoint, and differs in nothing else.

    Attributes:
        there, here: number of queries in the checkpoint and in the model.
        rows: number of rows to take of each tensor, by its name in the model.
    """

    there: int
    here: int
    rows: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.there} queries instead of {self.here}"


def more_queries(weights: Mapping[str, Tensor], model: nn.Module) -> list[MoreQueries]:
    """The modules of a model that have more queries in a checkpoint. Those that differ in other shapes, too, are left
    out: their rows are not those of the same queries."""
    own, theirs = ({key: tensor.shape for key, tensor in of.items()} for of in (model.state_dict(), weights))
    per_query = {
        name: {f"{name}.{key}": rows for key, rows in module.rows_per_query().items()}
        for name, module in model.named_modules()
        if isinstance(module, _WithQueries)
    }
    counted = {key for rows in per_query.values() for key in rows}
    found = []
    for name, rows in per_query.items():
        others = [key for key in own if key.startswith(f"{name}.") and key not in counted]
        if any(theirs.get(key, own[key]) != own[key] for key in others):
            continue
        if any(key not in theirs or not theirs[key] or theirs[key][1:] != own[key][1:] for key in rows):
            continue
        there, here = _number(theirs, rows), _number(own, rows)
        if there is not None and here is not None and there > here:
            found.append(MoreQueries(there, here, {key: own[key][0] for key in rows}))
    return found


def _number(shapes: Mapping[str, torch.Size], rows: Mapping[str, int]) -> int | None:
    """The number of queries, by the shapes of parameters with so many rows for each; None if they do not agree."""
    numbers = {divmod(shapes[key][0], count) for key, count in rows.items()}
    number, rest = numbers.pop() if len(numbers) == 1 else (0, 1)
    return None if rest else number


def first_queries(weights: Mapping[str, Tensor], found: Sequence[MoreQueries]) -> dict[str, Tensor]:
    """The weights, with the rows of only as many queries as the model has: the first ones."""
    rows = {key: count for each in found for key, count in each.rows.items()}
    return {key: tensor[: rows[key]] if key in rows else tensor for key, tensor in weights.items()}
