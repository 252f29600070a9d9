"""Tables of the page."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells, of which the first is the head of its row; `numeric` says which columns hold numbers."""

    title: str
    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    numeric: list[bool]
    sortable: bool = False


def percent_cell(value: float) -> Cell:
    return Cell("–") if value is None or math.isnan(value) else Cell(f"{value:.1f}", round(value, 4))
