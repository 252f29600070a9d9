"""Pictures of training curves, drawn from the metrics of one run or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from detrx.evaluation.nms import AP_NMS

from .metrics import LOSS_NAMES, SCALAR_GROUPS, RunMetrics, ScalarGroup, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PRECISIONS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", AP_NMS: "AP after NMS"}
_LINES = ("-", "--", ":", "-.")


def plot_runs(runs: Sequence[RunMetrics], path: str | os.PathLike, title: str = "", window: int = 10) -> None:
    """Write a PNG with total loss, losses by kind, average precision and learning rate over the iterations.

    Runs that logged the load of experts (``moe/*``) or the queries that pass the routers of a decoder
    (``routing/passing*``) get panels for these.

    Args:
        runs: one colour each; with a single run, the colours tell the curves of a panel apart.
        window: number of logged values that the loss curves are averaged over; the raw values stay as a faint line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draw: list[Callable[..., None]] = [
        partial(_draw_total, window=window),
        partial(_draw_losses, window=window),
        _draw_precision,
        _draw_rate,
    ]
    draw += [partial(_draw_group, group=group) for group in SCALAR_GROUPS if any(map(group.find, runs))]
    rows = (len(draw) + 1) // 2
    figure = Figure(figsize=(12, 3.75 * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, 2).flat)
    for panel in panels[len(draw) :]:
        panel.remove()
    last = max((x[-1] for run in runs for x, _ in run.series.values()), default=1)
    for panel, draw_into in zip(panels, draw, strict=False):
        draw_into(panel, runs)
        panel.set(xlabel="iteration", xlim=(0, max(last, 1)))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small", frameon=False)
        else:
            panel.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", transform=panel.transAxes, alpha=0.6)
    if title:
        figure.suptitle(title)
    figure.savefig(path)


def _style(runs: Sequence[RunMetrics], run: int, curve: int) -> dict[str, Any]:
    """Colour and line of a curve: colours tell runs apart, or the curves of a single run."""
    if len(runs) == 1:
        return {"color": f"C{curve % 10}"}
    return {"color": f"C{run % 10}", "linestyle": _LINES[curve % len(_LINES)]}


def _label(runs: Sequence[RunMetrics], run: RunMetrics, name: str) -> str:
    return name if len(runs) == 1 else f"{run.name}: {name}"


def _draw_total(panel: Axes, runs: Sequence[RunMetrics], window: int) -> None:
    for number, run in enumerate(runs):
        if "total_loss" in run.series:
            x, y = run.series["total_loss"]
            panel.plot(x, y, color=f"C{number % 10}", alpha=0.25, linewidth=1)
            panel.plot(x, smooth(y, window), color=f"C{number % 10}", label=run.name)
    panel.set(title="Total training loss", ylabel="loss")
    _logarithmic(panel)


def _draw_losses(panel: Axes, runs: Sequence[RunMetrics], window: int) -> None:
    for number, run in enumerate(runs):
        for index, (kind, (x, y)) in enumerate(run.loss_kinds().items()):
            label = _label(runs, run, LOSS_NAMES.get(kind, kind))
            panel.plot(x, smooth(y, window), label=label, **_style(runs, number, index))
    panel.set(title="Losses by kind (sum over layers)", ylabel="loss")
    _logarithmic(panel)


def _logarithmic(panel: Axes) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_locator(LogLocator(subs=()))


def _draw_precision(panel: Axes, runs: Sequence[RunMetrics]) -> None:
    for number, run in enumerate(runs):
        for index, (metric, name) in enumerate(_PRECISIONS.items()):
            if f"bbox/{metric}" in run.series:
                x, y = run.series[f"bbox/{metric}"]
                label = f"{name}: {y[-1]:.1f}" if len(runs) == 1 else f"{run.name}: {name} {y[-1]:.1f}"
                panel.plot(x, y, marker="o", markersize=4, clip_on=False, label=label, **_style(runs, number, index))
    panel.set(title="Average precision on the validation images", ylabel="AP (%)", ylim=(0, 100))


def _draw_rate(panel: Axes, runs: Sequence[RunMetrics]) -> None:
    for number, run in enumerate(runs):
        if "lr" in run.series:
            panel.plot(*run.series["lr"], color=f"C{number % 10}", label=run.name)
    panel.set(title="Learning rate", ylabel="learning rate", ylim=(0, None))


def _draw_group(panel: Axes, runs: Sequence[RunMetrics], group: ScalarGroup) -> None:
    for number, run in enumerate(runs):
        for index, (name, part) in enumerate(group.find(run).items()):
            panel.plot(*run.series[name], label=_label(runs, run, part), **_style(runs, number, index))
    panel.set(title=group.title, ylabel=group.unit)
    panel.set_ylim(bottom=group.floor)
