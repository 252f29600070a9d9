"""Records of studies: the JSON that tools/study.py writes, and the table of it.

A record has `title`, `description` and `command`, the machine (`detrx.collect_env.machine`), `cost`, and `variants`.
Each variant has `config`, `overrides`, `seeds`; `result`, with mean, standard deviation and values of each figure of
`study_runs.result_of` and of the scalars of the study's `analyses`; `curves` and `costs`, what `study_runs.curve_of`
and `cost_of` returned for each seed; and `parameters`, `flops` and `ms_per_image`, the means over the seeds that were
measured, None if none was. `cost` says which weights these were measured with: {"weights": "trained"}. Older records
have no `curves`. Still older ones have neither `cost` nor `costs`, but `size`: theirs were measured with random weights
on a random image of this size.
"""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from detrx.evaluation.nms import AP_NMS

from .table import NOTHING, markdown

_PRECISIONS = {
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "AP75": "bbox/AP75",
    "AP_S": "bbox/APs",
    "AP_M": "bbox/APm",
    "AP_L": "bbox/APl",
    "AP NMS": f"bbox/{AP_NMS}",
}
_COSTS = {"flops": "GFLOPs", "ms_per_image": "ms/image"}
_GINI = {
    "activation": "confident detections of test images",
    "positives": "pairs with ground truth in all layers, in training",
    "positives_last_layer": "those of the last layer",
    "gradient": "norms of the gradient of the losses",
}
_RECALL = re.compile(r"bbox/AR@?(\d+)")


def summarise(results: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and, of several seeds, sample standard deviation of every figure that all results have."""
    summary: dict[str, Any] = {}
    for key in results[0]:
        if not all(key in result for result in results):
            continue
        values = [result[key] for result in results]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[key] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return summary


def mean_cost(costs: Sequence[dict[str, Any] | None]) -> dict[str, float | None]:
    """`parameters`, `flops` and `ms_per_image` of a variant: means over its runs that have been measured, else None."""
    means: dict[str, float | None] = {}
    for key in ("parameters", "flops", "ms_per_image"):
        values = [cost[key] for cost in _with(costs, key)]
        means[key] = statistics.fmean(values) if values else None
    return means


def _with(costs: Sequence[dict[str, Any] | None], key: str) -> list[dict[str, Any]]:
    """The costs of runs in which `key` was measured."""
    return [cost for cost in costs if cost is not None and cost[key] is not None]


def text(figure: dict[str, Any] | None) -> str:
    """53.1, or 53.1 ± 0.4 where there are several seeds; with one more digit below 1; "-" for None."""
    if figure is None:
        return NOTHING
    digits = 1 if figure["mean"] >= 1 else 2
    return f"{figure['mean']:.{digits}f}" + ("" if figure["std"] is None else f" ± {figure['std']:.{digits}f}")


def markdown_table(record: dict[str, Any]) -> str:
    """The table of a record that tools/study.py wrote, and below it what its columns are."""
    rows = [_row(name, variant) for name, variant in record["variants"].items()]
    return markdown(rows) + "\n" + " ".join(_notes(record)) + "\n"


def _row(name: str, variant: dict[str, Any]) -> dict[str, str]:
    result = variant["result"]
    losses = [result[key]["mean"] for key in ("first_loss", "last_loss")]
    return {
        "variant": name,
        **{column: text(result.get(key)) for column, key in _PRECISIONS.items()},
        "AR": text(result.get(_recall_key(result))),
        **{f"Gini, {name.replace('_', ' ')}": text(result.get(f"gini/{name}")) for name in _GINI},
        "loss first -> last": " -> ".join(f"{loss:.1f}" for loss in losses),
        "s/step": _number(result["step_seconds"]["mean"], 3) if "step_seconds" in result else NOTHING,
        "parameters (M)": _number(variant["parameters"], 2, 1e6),
        "GFLOPs": _number(variant["flops"], 3, 1e9),
        "ms/image": _number(variant["ms_per_image"], 1),
        "seeds": str(len(variant["seeds"])),
    }


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return NOTHING if value is None else f"{value / unit:.{digits}f}"


def _recall_key(result: dict[str, Any]) -> str | None:
    """The average recall with the most detections per image."""
    limits = {int(match[1]): key for key in result if (match := _RECALL.fullmatch(key))}
    return limits[max(limits)] if limits else None


def _notes(record: dict[str, Any]) -> list[str]:
    """Sentences on the columns of a record's table that need them."""
    variants = record["variants"].values()
    notes = []
    if any(_PRECISIONS["AP NMS"] in each["result"] for each in variants):
        notes.append("AP NMS: AP after non-maximum suppression; what it adds is the cost of duplicates.")
    if key := next((key for each in variants if (key := _recall_key(each["result"]))), None):
        limit = key.rpartition("AR")[2].lstrip("@")
        notes.append(f"AR: average recall with at most {limit} detections per image.")
    found = [name for name in _GINI if any(f"gini/{name}" in each["result"] for each in variants)]
    if said := [f"{name.replace('_', ' ')}: {_GINI[name]}" for name in found]:
        notes.append(f"Gini: Gini coefficient over the queries; {'; '.join(said)}.")
    if any("step_seconds" in each["result"] for each in variants):
        notes.append("s/step: median time of a training step, without evaluations and the first steps.")
    if measured := [name for key, name in _COSTS.items() if any(each[key] is not None for each in variants)]:
        notes.append(f"{' and '.join(measured)}: {_measured_with(record)}.")
    if record.get("cost") is not None and (fewer := _of_fewer_seeds(record)):
        notes.append(f"Means of fewer seeds than trained: {', '.join(fewer)}.")
    return notes


def _measured_with(record: dict[str, Any]) -> str:
    if (cost := record.get("cost")) is None:
        return "with random weights on a random image of {}x{}".format(*record["size"])
    costs = [each for variant in record["variants"].values() for each in variant["costs"] if each is not None]
    least, most = (choose(each["images"] for each in costs) for choose in (min, max))
    if most == 1:
        images = "image"
    else:
        images = f"{most} images" if least == most else f"{least} to {most} images, depending on the run,"
    return f"mean and median with the {cost['weights']} weights on the first {images} of the test loader"


def _of_fewer_seeds(record: dict[str, Any]) -> list[str]:
    """The costs that were measured in some of the runs of a variant only, as text."""
    return [
        f"{column} of {name} ({len(measured)} of {len(variant['seeds'])})"
        for name, variant in record["variants"].items()
        for key, column in _COSTS.items()
        if 0 < len(measured := _with(variant["costs"], key)) < len(variant["seeds"])
    ]
