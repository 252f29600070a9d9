"""Tables on the terminal and in Markdown."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

NOTHING = "-"
"""The cell of what is not known."""


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print one line per row; the keys of the first row are the header. Numbers with a fraction have two decimals."""
    cells = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    alignment = ["left", *["right"] * (len(rows[0]) - 1)]
    print(tabulate(cells, list(rows[0]), tablefmt="plain", disable_numparse=True, colalign=alignment))


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table with one line per row; the keys of the first row are the header. Columns that are `NOTHING` in
    all rows are left out."""
    columns = [name for name in rows[0] if any(row[name] != NOTHING for row in rows)]
    cells = [columns, *([row[name] for name in columns] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, f"|{'---|' * len(columns)}", *body]) + "\n"
