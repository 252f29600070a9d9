"""Pictures of what queries look at: a row for each query and model, a column for each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.layers import cxcywh_to_xyxy

from .attention import Chosen, Look
from .figure import new_figure
from .visualize import class_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BOXES", "Row", "draw_attention"]

BOXES = ("truth", "predicted", "both", "none")
"""Which boxes can be drawn."""
OWN_TRUTH, OTHER_TRUTH, PREDICTED = "#bf5af2", "#0a84ff", "#2ee64d"
_PANEL = 2.2  # inches


@dataclass(frozen=True)
class Row:
    """One row of a figure: the name of a model, what its queries look at, and which query is drawn."""

    name: str
    look: Look
    chosen: Chosen


def draw_attention(
    image: Tensor,
    rows: Sequence[Row],
    heads: Sequence[int] | None = None,
    true_boxes: Tensor | None = None,
    boxes: str = "truth",
    class_names: Sequence[str] = (),
) -> Figure:
    """A figure with a row for each of `rows` and a column for each head.

    Args:
        image: (3, H, W) uint8 RGB.
        heads: indices of the heads (default: all of the first row's model).
        true_boxes: (G, 4) cxcywh in [0, 1]. The one for which a row's query was chosen is drawn in purple, the others
            in blue.
        boxes: which boxes are drawn, one of `BOXES`; a predicted box is that of the row's query, in green.
        class_names: by class index.

    Raises:
        ValueError: there are no rows, no such head or no such boxes.
    """
    if not rows:
        raise InvalidInputError("there is no query to draw")
    if boxes not in BOXES:
        raise InvalidInputError(f"boxes must be one of {BOXES}, got {boxes!r}")
    heads = range(rows[0].look.num_heads) if heads is None else heads
    for row in rows:
        if missing := [head for head in heads if not 0 <= head < row.look.num_heads]:
            raise InvalidInputError(f"heads {missing} do not exist: {row.name} has {row.look.num_heads} heads")
    pixels = image.permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    figure = new_figure(_PANEL * len(heads) + 0.6, _PANEL * len(rows) * min(2.0, height / width) + 0.5)
    panels = figure.subplots(len(rows), len(heads), squeeze=False)
    for row, of_row in zip(rows, panels, strict=True):
        for head, panel in zip(heads, of_row, strict=True):
            draw_head(panel, pixels, row.look, row.chosen.query, head)
            draw_boxes_of(panel, (height, width), row, true_boxes, boxes)
            panel.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            if row is rows[0]:
                panel.set_title(f"head {head}", fontsize=9)
        of_row[0].set_ylabel(f"{row.name}\n{description(row, class_names)}", fontsize=8)
    return figure


def description(row: Row, class_names: Sequence[str]) -> str:
    """The query of a row with its class and score."""
    score, label = row.look.scores[row.chosen.query].max(0)
    return f"query {row.chosen.query}: {class_name(int(label), class_names)} {float(score):.2f}"


def draw_head(panel: Axes, pixels: np.ndarray, look: Look, query: int, head: int) -> None:
    """The image with the map, or the sampling points, of one query and head."""
    height, width = pixels.shape[:2]
    panel.imshow(pixels, extent=(0, width, height, 0))
    attention = look.attention
    if isinstance(attention, Tensor):
        values = attention[head, query].numpy()
        # The image shows through where there is little attention.
        panel.imshow(
            values,
            cmap="jet",
            alpha=0.2 + 0.6 * values / values.max(),
            extent=(0, width, height, 0),
            interpolation="bilinear",
            aspect="auto",
        )
        panel.set_aspect(1)
        return
    points = attention.places[head, query] * torch.tensor([width, height])
    weights = attention.weights[head, query]
    order = weights.argsort()  # the largest on top
    share = (weights / weights.max())[order]
    x, y = points[order].T
    panel.scatter(x, y, s=4 + 40 * share, c=weights[order], cmap="autumn", edgecolors="black", linewidths=0.4)
    x, y = attention.reference[query] * torch.tensor([width, height])
    panel.plot([x], [y], marker="+", color="white", markersize=9, markeredgewidth=1.5)


def draw_boxes_of(panel: Axes, size: tuple[int, int], row: Row, true_boxes: Tensor | None, boxes: str) -> None:
    """The boxes of a panel for an image of `size` (height, width)."""
    from matplotlib.patches import Rectangle

    shown: list[tuple[Tensor, str, str]] = []
    if boxes in ("truth", "both") and true_boxes is not None:
        for index, box in enumerate(true_boxes):
            shown.append((box, OWN_TRUTH if index == row.chosen.truth else OTHER_TRUTH, "-"))
    if boxes in ("predicted", "both"):
        shown.append((row.look.boxes[row.chosen.query], PREDICTED, "--"))
    for box, colour, style in shown:
        x1, y1, x2, y2 = (cxcywh_to_xyxy(box) * torch.tensor([size[1], size[0], size[1], size[0]])).tolist()
        panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style))
