"""Training curves from the `metrics.json` that the training scripts write."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detrx.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSS_KINDS = {"class": "classification", "bbox": "box L1", "giou": "box GIoU"}  # in this order; others follow
_LINES = ("-", "--", ":", "-.")
_LOGGED = (
    {
        "pattern": r"moe/(.+)_max_over_mean",
        "title": "Load of the busiest expert (1: all alike)",
        "unit": "times the mean load",
        "floor": 1,
    },
    {
        "pattern": r"moe/(.+)_effective_experts",
        "title": "Experts in use (exponential of the entropy of their loads)",
        "unit": "experts",
        "floor": 1,
    },
    {
        "pattern": r"routing/passing(?:_(\d+))?",
        "title": "Queries that pass the routers, per image",
        "unit": "queries",
        "floor": 0,
    },
)
"""Panels of what methods log: names of the scalars, and what they are."""


@dataclass(frozen=True)
class Run:
    """One training run: its name, and for every metric the iterations and values at which it was written."""

    name: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]

    def loss_kinds(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Losses of one kind (`loss_<kind>`, with whatever suffix for layer or group), added up."""
        kinds: dict[str, dict[float, float]] = {}
        for name, (iterations, values) in self.series.items():
            match = re.match(r"loss_([a-z0-9]+)", name)
            if match:
                total = kinds.setdefault(match.group(1), {})
                for iteration, value in zip(iterations.tolist(), values.tolist(), strict=True):
                    total[iteration] = total.get(iteration, 0.0) + value
        order = [kind for kind in _LOSS_KINDS if kind in kinds] + sorted(set(kinds) - set(_LOSS_KINDS))
        return {kind: _as_series(kinds[kind]) for kind in order}


def read_metrics(path: str | os.PathLike, name: str | None = None) -> Run:
    """Read `metrics.json` (one JSON object per line), given as the file or its folder.

    Where a resumed run wrote an iteration again, the later line counts. An incomplete last line is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not what a training script writes, or nothing was logged.
    """
    path = Path(path)
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected the metrics.json of a training run, or its folder")
    points: dict[str, dict[float, float]] = {}
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            iteration = entry["iteration"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # a run that was killed, or is writing
            raise InvalidInputError(f"{file}, line {number}: expected a JSON object with 'iteration'") from error
        for key, value in entry.items():
            if key != "iteration" and isinstance(value, (int, float)):
                points.setdefault(key, {})[iteration] = value
    if not points:
        raise InvalidInputError(f"{file} holds no metrics yet")
    return Run(name or file.resolve().parent.name, {key: _as_series(values) for key, values in points.items()})


def _as_series(points: dict[float, float]) -> tuple[np.ndarray, np.ndarray]:
    iterations = sorted(points)
    return np.array(iterations), np.array([points[i] for i in iterations], dtype=float)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window of at most this many values around each one (fewer at both ends)."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    at = np.arange(len(values))
    reach = np.minimum(max(0, window - 1) // 2, np.minimum(at, at[::-1]))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def plot_runs(runs: Sequence[Run], path: str | os.PathLike, title: str = "", window: int = 10) -> None:
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
    draw += [
        partial(_draw_logged, **panel)
        for panel in _LOGGED
        if any(re.fullmatch(panel["pattern"], name) for run in runs for name in run.series)
    ]
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


def _style(runs: Sequence[Run], run: int, curve: int) -> dict[str, str]:
    """Colour and line of a curve: colours tell runs apart, or the curves of a single run."""
    if len(runs) == 1:
        return {"color": f"C{curve % 10}"}
    return {"color": f"C{run % 10}", "linestyle": _LINES[curve % len(_LINES)]}


def _label(runs: Sequence[Run], run: Run, name: str) -> str:
    return name if len(runs) == 1 else f"{run.name}: {name}"


def _draw_total(panel: Axes, runs: Sequence[Run], window: int) -> None:
    for number, run in enumerate(runs):
        if "total_loss" in run.series:
            x, y = run.series["total_loss"]
            panel.plot(x, y, color=f"C{number % 10}", alpha=0.25, linewidth=1)
            panel.plot(x, smooth(y, window), color=f"C{number % 10}", label=run.name)
    panel.set(title="Total training loss", ylabel="loss")
    _logarithmic(panel)


def _draw_losses(panel: Axes, runs: Sequence[Run], window: int) -> None:
    for number, run in enumerate(runs):
        for index, (kind, (x, y)) in enumerate(run.loss_kinds().items()):
            label = _label(runs, run, _LOSS_KINDS.get(kind, kind))
            panel.plot(x, smooth(y, window), label=label, **_style(runs, number, index))
    panel.set(title="Losses by kind (sum over layers)", ylabel="loss")
    _logarithmic(panel)


def _logarithmic(panel: Axes) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_locator(LogLocator(subs=()))


def _draw_precision(panel: Axes, runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        for index, metric in enumerate(("AP", "AP50", "AP75")):
            if f"bbox/{metric}" in run.series:
                x, y = run.series[f"bbox/{metric}"]
                label = f"{metric}: {y[-1]:.1f}" if len(runs) == 1 else f"{run.name}: {metric} {y[-1]:.1f}"
                panel.plot(x, y, marker="o", markersize=4, clip_on=False, label=label, **_style(runs, number, index))
    panel.set(title="Average precision on the validation images", ylabel="AP (%)", ylim=(0, 100))


def _draw_rate(panel: Axes, runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        if "lr" in run.series:
            panel.plot(*run.series["lr"], color=f"C{number % 10}", label=run.name)
    panel.set(title="Learning rate", ylabel="learning rate", ylim=(0, None))


def _draw_logged(panel: Axes, runs: Sequence[Run], pattern: str, title: str, unit: str, floor: float) -> None:
    """Curves of the scalars whose names match, labelled with the group of the pattern: a place or a number."""
    for number, run in enumerate(runs):
        found = {name: re.fullmatch(pattern, name) for name in run.series}
        parts = {name: match[1] or "" for name, match in found.items() if match}
        for index, (name, part) in enumerate(sorted(parts.items(), key=lambda item: (len(item[1]), item[1]))):
            label = f"router {part}" if part.isdigit() else part or "mean"
            panel.plot(*run.series[name], label=_label(runs, run, label), **_style(runs, number, index))
    panel.set(title=title, ylabel=unit)
    panel.set_ylim(bottom=floor)
