"""The section on queries: how often each is active, where its boxes are, and the tables of the methods."""

import math
from typing import Any

import numpy as np

from detrx.analysis.queries import QueryTable

from .charts import Series, bar_chart, number, scatter_chart, share_chart
from .page_table import Cell, Table


def queries_section(figures: dict[str, Any]) -> dict[str, Any]:
    activation, boxes = figures["activation"], np.array(figures["boxes"])
    counts = np.array(activation["counts"])
    order = np.argsort(-counts, kind="stable")
    gini = activation["gini"]
    x, y = np.array(activation["lorenz"]).T
    most = max(int(counts.max()), 1)
    labels = [
        f"query {i}: active in {counts[i]} images, mean size {w:.2f} × {h:.2f}, centre spread {a:.2f}, {b:.2f}"
        for i, ((_, _, w, h), (a, b)) in enumerate(zip(boxes, figures["spread"], strict=True))
    ]
    points = [(cx, cy, math.sqrt(w * h), counts[i] / most) for i, (cx, cy, w, h) in enumerate(boxes)]
    charts = [
        bar_chart(
            "How often each query is active",
            [f"query {i}" for i in order],
            [("images", counts[order].tolist())],
            "queries, by falling count",
            "images",
        ),
        share_chart(
            "Lorenz curve of the activations",
            [Series("share of activations", x, y)],
            "share of queries",
            "share of activations",
            diagonal=True,
            note="The dashed line stands for queries that are all equally active.",
        ),
        scatter_chart(
            "Mean box of each query",
            points,
            labels,
            "x, share of the width",
            "y, share of the height",
            note="Each circle marks the mean centre of a query's boxes over the images. It grows with the mean size of "
            "the boxes and is the more opaque the more often the query is active; open circles are never active. "
            "Queries that are encoder proposals are ranked anew in each image, so their means lie near the middle.",
        ),
    ]
    tiles = [
        ("Queries", number(activation["queries"]), ""),
        ("Active", number(activation["active_queries"]), "in at least one image"),
        ("Gini coefficient", "–" if gini is None else f"{gini:.2f}", "0: all equally active"),
        (
            "Detections",
            number(activation["detections"]),
            f"{activation['detections'] / activation['images']:.1f} per image",
        ),
    ]
    tables = [_table(each) for each in figures["tables"]]
    return {"images": activation["images"], "tiles": tiles, "charts": charts, "tables": tables}


def _table(table: QueryTable) -> Table:
    def cell(value: str | int | float) -> Cell:
        if isinstance(value, str):
            return Cell(value)
        return Cell(number(value) if isinstance(value, int) else f"{value:.1f}", value)

    numeric = [not any(isinstance(row[column], str) for row in table.rows) for column in range(len(table.columns))]
    rows = [[cell(value) for value in row] for row in table.rows]
    return Table(table.title, table.caption, list(table.columns), rows, numeric)
