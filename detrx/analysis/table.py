"""Tables on the terminal."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print one line per row; the keys of the first row are the header. Numbers with a fraction have two decimals."""
    cells = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    alignment = ["left", *["right"] * (len(rows[0]) - 1)]
    print(tabulate(cells, list(rows[0]), tablefmt="plain", disable_numparse=True, colalign=alignment))
