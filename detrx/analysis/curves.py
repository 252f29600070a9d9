"""Training curves from the `metrics.json` that the training scripts write."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LOSS_KINDS = {"class": "classification", "bbox": "box L1", "giou": "box GIoU"}  # in this order; others follow


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
            raise ValueError(f"{file}, line {number}: expected a JSON object with 'iteration'") from error
        for key, value in entry.items():
            if key != "iteration" and isinstance(value, (int, float)):
                points.setdefault(key, {})[iteration] = value
    if not points:
        raise ValueError(f"{file} holds no metrics yet")
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
    """Write a PNG with total loss, losses by kind, learning rate and average precision over the iterations.

    Args:
        runs: one colour each; with a single run, the colours tell the curves of a panel apart.
        window: number of logged values that the loss curves are averaged over; the raw values stay as a faint line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(12, 7.5), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    total, kinds, precision, rate = figure.subplots(2, 2).flat
    styles = ("-", "--", ":", "-.")
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        if "total_loss" in run.series:
            x, y = run.series["total_loss"]
            total.plot(x, y, color=colour, alpha=0.25, linewidth=1)
            total.plot(x, smooth(y, window), color=colour, label=run.name)
        for index, (kind, (x, y)) in enumerate(run.loss_kinds().items()):
            label = _LOSS_KINDS.get(kind, kind)
            single = len(runs) == 1
            kinds.plot(
                x,
                smooth(y, window),
                color=f"C{index % 10}" if single else colour,
                linestyle="-" if single else styles[index % len(styles)],
                label=label if single else f"{run.name}: {label}",
            )
        if "lr" in run.series:
            rate.plot(*run.series["lr"], color=colour, label=run.name)
        for index, metric in enumerate(("AP", "AP50", "AP75")):
            if f"bbox/{metric}" in run.series:
                x, y = run.series[f"bbox/{metric}"]
                single = len(runs) == 1
                precision.plot(
                    x,
                    y,
                    marker="o",
                    markersize=4,
                    clip_on=False,
                    color=f"C{index}" if single else colour,
                    linestyle="-" if single else styles[index],
                    label=f"{metric}: {y[-1]:.1f}" if single else f"{run.name}: {metric} {y[-1]:.1f}",
                )
    total.set(title="Total training loss", ylabel="loss", yscale="log")
    kinds.set(title="Losses by kind (sum over layers)", ylabel="loss", yscale="log")
    for panel in (total, kinds):
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_locator(LogLocator(subs=()))
    precision.set(title="Average precision on the validation images", ylabel="AP (%)", ylim=(0, 100))
    rate.set(title="Learning rate", ylabel="learning rate", ylim=(0, None))
    last = max((x[-1] for run in runs for x, _ in run.series.values()), default=1)
    for panel in (total, kinds, precision, rate):
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
