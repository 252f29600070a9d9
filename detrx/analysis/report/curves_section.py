"""The curves of a training: losses, average precision, learning rate, and whatever else was logged."""

import re

from detrx.analysis.curves import Run, smooth

from .charts import Chart, Series, line_chart
from .detections import Absent

_NAMES = {"class": "classification", "bbox": "box L1", "giou": "box GIoU"}
_PRECISIONS = ("AP", "AP50", "AP75", "APr", "APc", "APf")
_GROUPS = (
    (r"moe/(?P<name>\w+)_effective_experts", "Effective number of experts", "experts"),
    (r"moe/(?P<name>\w+)_max_over_mean", "Load of the busiest expert", "times the mean"),
    (r"routing/(?P<name>passing(?:_\d+)?)", "Queries that pass the routers", "queries"),
)
_NOT_DRAWN = re.compile(r"loss_.*|total_loss|lr|grad_norm|time|data_time|rank_data_time|eta_seconds|bbox/.*")
WINDOW = 10
"""Losses are averaged over so many logged values."""


def draw_curves(run: Run) -> list[Chart] | Absent:
    series = run.series
    last = max(float(x[-1]) for x, _ in series.values())
    over = {"x_label": "iteration", "x_range": (0, last)}
    charts = []
    if "total_loss" in series:
        x, y = series["total_loss"]
        both = [Series("as logged", x, y, faint=True), Series("total loss", x, smooth(y, WINDOW))]
        charts.append(line_chart("Total loss", both, y_label="loss", log=True, **over))
    kinds = [Series(_NAMES.get(k, k), x, smooth(y, WINDOW)) for k, (x, y) in run.loss_kinds().items()]
    charts.append(line_chart("Losses by kind, over all layers and groups", kinds, y_label="loss", log=True, **over))
    aps = [Series(name, *series[f"bbox/{name}"]) for name in _PRECISIONS if f"bbox/{name}" in series]
    charts.append(line_chart("Average precision", aps, y_label="percent", from_zero=True, markers=True, **over))
    for key, title, label in (
        ("lr", "Learning rate", "learning rate"),
        ("grad_norm", "Norm of the gradient", "norm"),
        ("time", "Time of an iteration", "seconds"),
    ):
        if key in series:
            values = [Series(label, *series[key])]
            charts.append(line_chart(title, values, y_label=label, from_zero=True, **over))
    for (title, label), found in _further(run).items():
        charts.append(line_chart(title, found, y_label=label, **over))
    charts = [chart for chart in charts if chart is not None]
    return charts or Absent("metrics.json has no losses and no average precision yet.")


def _further(run: Run) -> dict[tuple[str, str], list[Series]]:
    """The other scalars, those of one kind together: by title and name of the axis."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for key, (x, y) in sorted(run.series.items()):
        if _NOT_DRAWN.fullmatch(key):
            continue
        for pattern, title, label in _GROUPS:
            if match := re.fullmatch(pattern, key):
                groups.setdefault((title, label), []).append(Series(_layer(match["name"]), x, y))
                break
        else:
            groups.setdefault((re.sub(r"_\d+$", "", key), ""), []).append(Series(key, x, y))
    return groups


def _layer(name: str) -> str:
    if name == "passing":
        return "mean"
    return re.sub(r"^passing_(\d+)$", r"layer \1", name).replace("_", " ")
