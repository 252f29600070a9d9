"""The section on the training: losses, average precision, learning rate, and all other scalars that were logged."""

import functools
import re

from detrx.analysis.metrics import LOSS_NAMES, SCALAR_GROUPS, RunMetrics, smooth

from .charts import Chart, Series, line_chart
from .detections import Absent

_PRECISIONS = ("AP", "AP50", "AP75", "APr", "APc", "APf")
_DRAWN = re.compile(r"loss_.*|total_loss|lr|grad_norm|time|bbox/.*")
_NOT_DRAWN = re.compile(r"data_time|rank_data_time|eta_seconds")
WINDOW = 10
"""Losses are averaged over so many logged values."""


def curves_section(run: RunMetrics) -> list[Chart] | Absent:
    """The charts of a run; absent if none of its scalars is finite."""
    series = run.series
    last = max(float(x[-1]) for x, _ in series.values())
    draw = functools.partial(line_chart, x_label="iteration", x_range=(0, last))
    charts: list[Chart | None] = []
    if "total_loss" in series:
        x, y = series["total_loss"]
        both = [Series("as logged", x, y, faint=True), Series("total loss", x, smooth(y, WINDOW))]
        charts.append(draw("Total loss", both, y_label="loss", log=True))
    kinds = [Series(LOSS_NAMES.get(k, k), x, smooth(y, WINDOW)) for k, (x, y) in run.loss_kinds().items()]
    charts.append(draw("Losses by kind, summed over layers and groups", kinds, y_label="loss", log=True))
    aps = [Series(name, *series[f"bbox/{name}"]) for name in _PRECISIONS if f"bbox/{name}" in series]
    charts.append(draw("Average precision", aps, y_label="percent", from_zero=True, markers=True))
    for key, title, label in (
        ("lr", "Learning rate", "learning rate"),
        ("grad_norm", "Norm of the gradient", "norm"),
        ("time", "Time of an iteration", "seconds"),
    ):
        if key in series:
            charts.append(draw(title, [Series(label, *series[key])], y_label=label, from_zero=True))
    grouped: set[str] = set()
    for group in SCALAR_GROUPS:
        parts = group.find(run)
        grouped |= set(parts)
        curves = [Series(part, *series[name]) for name, part in parts.items()]
        charts.append(draw(group.title, curves, y_label=group.unit))
    for title, names in _others(run, grouped).items():
        charts.append(draw(title, [Series(name, *series[name]) for name in names]))
    drawn = [chart for chart in charts if chart is not None]
    return drawn or Absent("metrics.json has no losses and no average precision yet.")


def _others(run: RunMetrics, grouped: set[str]) -> dict[str, list[str]]:
    """Names of the scalars without a chart of their own; those that differ only in a number at the end are together."""
    together: dict[str, list[str]] = {}
    for name in sorted(run.series):
        if name not in grouped and not _DRAWN.fullmatch(name) and not _NOT_DRAWN.fullmatch(name):
            together.setdefault(re.sub(r"_\d+$", "", name), []).append(name)
    return together
