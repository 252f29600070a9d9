"""The picture of a study's record: the AP of the variants, and their curves."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detrx.evaluation.nms import AP_NMS

from .figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[Mapping[str, float]]
"""What `study_runs.curve_of` returns."""


def plot_study(record: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a PNG with the AP of every variant of a record: mean, standard deviation and each seed. If the variants
    were evaluated several times, their mean curves are beside it; with AP after non-maximum suppression, it is
    a triangle beside each bar and a dashed curve."""
    rows = record["variants"]
    curves = {
        figure: {name: mean_curve(row.get("curves") or (), figure) for name, row in rows.items()}
        for figure in ("AP", AP_NMS)
    }
    with_curves = any(len(points) > 1 for points in curves["AP"].values())
    height = 1.2 + 0.4 * len(rows)
    picture = new_figure(14, max(4.5, height)) if with_curves else new_figure(8, height)
    panels = picture.subplots(1, 1 + with_curves, squeeze=False)[0]
    picture.suptitle(record["title"])
    _draw_bars(panels[0], rows)
    if with_curves:
        _draw_curves(panels[1], curves)
    picture.savefig(path)


def mean_curve(curves: Sequence[Curve | None], figure: str) -> list[tuple[float, float]]:
    """(iteration, mean over the seeds) of a figure, at the iterations at which all seeds have it; seeds whose curve was
    not recorded (None) are left out."""
    by_seed = [{point["iteration"]: point[figure] for point in each if figure in point} for each in curves if each]
    shared = set.intersection(*map(set, by_seed)) if by_seed else set()
    return [(iteration, statistics.fmean(each[iteration] for each in by_seed)) for iteration in sorted(shared)]


def _colour(place: int) -> str:
    """Ten colours, and then their lighter companions."""
    from matplotlib import colormaps, colors

    return colors.to_hex(colormaps["tab20"]((2 * place + place // 10 % 2) % 20))


def _draw_bars(axes: Axes, rows: Mapping[str, Any]) -> None:
    label = "AP after NMS"
    for place, row in enumerate(rows.values()):
        ap, after = (row["result"].get(f"bbox/{figure}") for figure in ("AP", AP_NMS))
        if ap is None:  # a model that detects nothing has none
            continue
        axes.barh(place, ap["mean"], xerr=ap["std"], color=_colour(place), alpha=0.5, height=0.6, capsize=3)
        axes.plot(ap["values"], [place] * len(ap["values"]), "o", color=_colour(place), markersize=4)
        if after is not None:
            axes.plot(after["mean"], place + 0.38, "^", color="black", markersize=5, label=label)
            label = "_"  # once in the legend
    axes.set(xlabel="AP (%)", title="Last evaluation")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def _draw_curves(axes: Axes, curves: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> None:
    for figure, style in (("AP", "o-"), (AP_NMS, "^--")):
        for place, (name, points) in enumerate(curves[figure].items()):
            if points:
                label = name if figure == "AP" else "_"
                axes.plot(*zip(*points, strict=True), style, color=_colour(place), markersize=4, label=label)
    if any(curves[AP_NMS].values()):
        axes.plot([], [], "^--", color="grey", markersize=4, label="after NMS")
    axes.set(xlabel="iteration", ylabel="AP (%)", title="Mean over the seeds", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
