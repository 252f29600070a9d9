"""The section on average precision: overall, by size, by class, and recall."""

import math
from typing import Any

from detrx.evaluation import BoxScores
from detrx.evaluation.saved import is_lvis

from .charts import number
from .detection_statistics import DetectionStatistics
from .detections import Absent
from .page_table import Cell, Table, percent_cell
from .run_folder import RunFolder

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_MEANING = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects",
    "APm": "medium objects",
    "APl": "large objects",
    "APr": "rare classes",
    "APc": "common classes",
    "APf": "frequent classes",
}


def precision_section(run: RunFolder, figures: DetectionStatistics | Absent, threshold: str) -> dict[str, Any]:
    """Tiles, tables, notes and absent parts: average precision of the last evaluation, figures on detections."""
    logged = last_evaluation(run)
    tables, notes, absent = [], [], []
    scored = {} if isinstance(figures, Absent) else figures.scores.average_precision()
    if logged:
        tables.append(_overall(logged, "Of the training's last evaluation, in percent"))
    elif isinstance(figures, Absent):
        absent.append(Absent("metrics.json has no evaluation, and there are no detections to score.", ""))
    else:
        tables.append(_overall(scored, f"Of detections {figures.detections.source}, in percent"))
        notes.append("metrics.json has no evaluation: these figures are of the detections of this report.")
    per_class = {key.removeprefix("AP-"): value for key, value in logged.items() if key.startswith("AP-")}
    if isinstance(figures, Absent):
        if per_class:
            rows = [[Cell(name), percent_cell(value)] for name, value in per_class.items()]
            caption = "Of the training's last evaluation, in percent"
            tables.append(Table("By class", caption, ["class", "AP"], rows, [False, True], sortable=True))
        absent.append(
            Absent(f"Recall and the breakdown by size and class need detections. {figures.why}", figures.command)
        )
    else:
        if is_lvis(figures.detections.dataset.ground_truth):
            notes.append(
                "The dataset is annotated as LVIS, not every class in every image. Counts follow COCO, so detections "
                "of classes that are not annotated in an image count as wrong."
            )
        elif logged and not math.isclose(logged["AP"], scored["AP"], abs_tol=0.05):
            notes.append(
                f"The detections {figures.detections.source} have an AP of {number(round(scored['AP'], 1))}, the last "
                f"evaluation {number(round(logged['AP'], 1))}: they are of other weights or other images. Recall and "
                "the tables by size and class are of these detections."
            )
        tables += [_by_size(figures), _recall(figures.scores), _by_class(figures, threshold)]
    shown = logged or scored
    tiles = [(name, round(shown.get(name, math.nan), 1), _MEANING[name]) for name in ("AP", "AP50", "AP75")]
    return {"tables": tables, "notes": notes, "absent": absent, "tiles": tiles}


def last_evaluation(run: RunFolder) -> dict[str, float]:
    """Figures of the last evaluation of boxes in `metrics.json`, by name without "bbox/"; empty if there is none."""
    series = run.metrics.series if run.metrics else {}
    found = {key.removeprefix("bbox/"): float(y[-1]) for key, (_, y) in series.items() if key.startswith("bbox/")}
    return found if "AP" in found else {}


def _overall(values: dict[str, float], caption: str) -> Table:
    names = [name for name in _AP if name in values]
    rows = [[Cell(name), Cell(_MEANING[name]), percent_cell(values[name])] for name in names]
    return Table("Overall", caption, ["metric", "over", "value"], rows, [False, False, True])


def _by_size(figures: DetectionStatistics) -> Table:
    rows = [
        [
            Cell(name),
            Cell(size["range"]),
            Cell(number(size["objects"]), size["objects"]),
            percent_cell(size["AP"]),
            percent_cell(size["AR"]),
        ]
        for name, size in figures.sizes.items()
    ]
    heads = ["size", "area", "objects", "AP", "recall (AR)"]
    caption = "Of the detections, in percent; sizes are areas in the image"
    return Table("By size", caption, heads, rows, [False, False, True, True, True])


def _recall(scores: BoxScores) -> Table:
    limits = {
        f"AR{limit}": f"at most {limit} {'detection' if limit == 1 else 'detections'} per image and class"
        for limit in scores.max_dets
    }
    values = scores.average_recall()
    rows = [[Cell(name), Cell(meaning), percent_cell(values[name])] for name, meaning in limits.items()]
    caption = "Average recall over IoU 0.50 to 0.95, in percent"
    return Table("Recall", caption, ["metric", "with", "value"], rows, [False, False, True])


def _by_class(figures: DetectionStatistics, threshold: str) -> Table:
    rows = []
    for name, aps, counts in zip(figures.names, figures.scores.per_class(), figures.classes.tolist(), strict=True):
        objects, correct, wrong = counts
        recall = 100 * correct / objects if objects else math.nan
        precision = 100 * correct / (correct + wrong) if correct + wrong else math.nan
        values = [percent_cell(aps[key]) for key in ("AP", "AP50", "AP75")]
        rows.append(
            [Cell(name), Cell(number(objects), objects), *values, percent_cell(recall), percent_cell(precision)]
        )
    heads = ["class", "objects", "AP", "AP50", "AP75", "recall", "precision"]
    caption = (
        f"Of the detections, in percent. Recall and precision count detections with a score of {threshold} or more, "
        "and an IoU of 0.5 as correct."
    )
    return Table("By class", caption, heads, rows, [False] + [True] * 6, sortable=True)
