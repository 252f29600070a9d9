"""The `metrics.json` that trainings write: the scalars of a run over its iterations, and what they are called."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detrx.errors import InvalidInputError

METRICS_FILE = "metrics.json"
Points = tuple[np.ndarray, np.ndarray]
"""Iterations and values."""

LOSS_NAMES = {"class": "classification", "bbox": "box L1", "giou": "box GIoU"}
"""Names of `loss_<kind>`, in the order in which they are shown; others follow."""


@dataclass(frozen=True)
class RunMetrics:
    """The scalars of one training run.

    Attributes:
        name: of the run.
        series: for every scalar the iterations and values at which it was written.
    """

    name: str
    series: dict[str, Points]

    def loss_kinds(self) -> dict[str, Points]:
        """Losses of one kind (`loss_<kind>`, with any suffix for layer or group), added up."""
        kinds: dict[str, dict[float, float]] = {}
        for name, (iterations, values) in self.series.items():
            match = re.match(r"loss_([a-z0-9]+)", name)
            if match:
                total = kinds.setdefault(match.group(1), {})
                for iteration, value in zip(iterations.tolist(), values.tolist(), strict=True):
                    total[iteration] = total.get(iteration, 0.0) + value
        order = [kind for kind in LOSS_NAMES if kind in kinds] + sorted(set(kinds) - set(LOSS_NAMES))
        return {kind: _as_points(kinds[kind]) for kind in order}


@dataclass(frozen=True)
class ScalarGroup:
    """Scalars that methods log for several parts of a model, to be shown in one chart.

    Attributes:
        pattern: of their names; its group is the part: a name, the number of a layer, or nothing for the mean.
        title: of the chart.
        unit: of the values.
        floor: least value that is possible.
    """

    pattern: str
    title: str
    unit: str
    floor: float

    def find(self, run: RunMetrics) -> dict[str, str]:
        """Names of a run's scalars that belong to the group, and what their parts are called."""
        matches = {name: re.fullmatch(self.pattern, name) for name in run.series}
        parts = {name: match[1] or "" for name, match in matches.items() if match}
        ordered = sorted(parts.items(), key=lambda item: (len(item[1]), item[1]))
        return {name: f"layer {part}" if part.isdigit() else part.replace("_", " ") or "mean" for name, part in ordered}


SCALAR_GROUPS = (
    ScalarGroup(r"moe/(.+)_max_over_mean", "Load of the busiest expert (1: all alike)", "times the mean load", 1),
    ScalarGroup(
        r"moe/(.+)_effective_experts", "Experts in use (exponential of the entropy of their loads)", "experts", 1
    ),
    ScalarGroup(r"routing/passing(?:_(\d+))?", "Queries that pass the routers, per image", "queries", 0),
)


def read_metrics(path: str | os.PathLike, name: str | None = None) -> RunMetrics:
    """Read `metrics.json` (one JSON object per line), given as the file or its folder.

    Where a resumed run wrote an iteration again, the later line counts. An incomplete last line is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not what a training script writes, or nothing was logged.
    """
    path = Path(path)
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected the metrics.json of a training run, or its folder")
    points: dict[str, dict[float, float]] = {}
    lines = file.read_text(encoding="utf-8").splitlines()
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
    return RunMetrics(name or file.resolve().parent.name, {key: _as_points(values) for key, values in points.items()})


def _as_points(points: dict[float, float]) -> Points:
    iterations = sorted(points)
    return np.array(iterations), np.array([points[i] for i in iterations], dtype=float)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window of at most this many values around each one (fewer at both ends)."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    at = np.arange(len(values))
    reach = np.minimum(max(0, window - 1) // 2, np.minimum(at, at[::-1]))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
