"""Tables and charts on what a detector finds: average precision, confusions, curves, scores, queries."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrx.analysis.queries import QueryTable
from detrx.evaluation import BoxScores
from detrx.evaluation.saved import is_lvis

from .breakdown import LEAST_SCORE, Breakdown
from .charts import Chart, Series, bar_chart, line_chart, number, scatter_chart, small_curve
from .detections import Absent, Detections
from .pictures import Sheets
from .run_folder import RunFolder

MOST_CLASSES, MOST_CURVES = 30, 80
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


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells, of which the first is the head of its row; `numeric` says which columns hold numbers."""

    title: str
    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    numeric: list[bool]
    sortable: bool = False


def ap_part(run: RunFolder, found: Detections | Absent, figures: Breakdown | Absent, threshold: str) -> dict[str, Any]:
    """Tiles, tables, notes and what is absent on average precision: that of the training's last evaluation, and what
    detections tell beyond that."""
    logged = last_evaluation(run)
    tables, notes, absent = [], [], []
    scored = {} if isinstance(figures, Absent) else figures.scores.average_precision()
    if logged:
        tables.append(_overall(logged, "Of the training's last evaluation, in percent"))
    elif scored:
        tables.append(_overall(scored, f"Of detections {found.source}, in percent"))
        notes.append("metrics.json has no evaluation: these figures are of the detections of this report.")
    else:
        absent.append(Absent("metrics.json has no evaluation, and there are no detections to score.", ""))
    per_class = {key.removeprefix("AP-"): value for key, value in logged.items() if key.startswith("AP-")}
    if isinstance(figures, Absent):
        if per_class:
            rows = [[Cell(name), _cell(value)] for name, value in per_class.items()]
            caption = "Of the training's last evaluation, in percent"
            tables.append(Table("By class", caption, ["class", "AP"], rows, [False, True], sortable=True))
        absent.append(
            Absent(f"Recall and the breakdown by size and class need detections. {figures.why}", figures.command)
        )
    else:
        if is_lvis(found.dataset.ground_truth):
            notes.append(
                "The dataset is annotated as LVIS, not every class in every image. What is counted from the detections "
                "follows COCO: detections of classes that nobody looked for are wrong there."
            )
        elif logged and not math.isclose(logged["AP"], scored["AP"], abs_tol=0.05):
            notes.append(
                f"The detections {found.source} have an AP of {number(round(scored['AP'], 1))}, the last evaluation "
                f"{number(round(logged['AP'], 1))}: they are of other weights or other images. Recall and the tables "
                "by size and class are of these detections."
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


def detections_part(found: Detections, figures: Breakdown, sheets: Sheets | Absent) -> dict[str, Any]:
    names = figures.names
    counts = figures.confusion[:-1].sum(1)
    shown = sorted(np.argsort(-counts, kind="stable")[:MOST_CURVES].tolist())
    scores = figures.scores
    ap50 = scores.precision[0, :, :, 0, -1]  # (recall, class)
    curves = [
        (
            names[k],
            _percent(_mean(ap50[:, k])),
            small_curve(scores.recall_thresholds, _existing(ap50[:, k]), _pr(names[k])),
        )
        for k in shown
        if counts[k]
    ]
    return {
        "source": found.source,
        "sheets": sheets,
        "confusion": _confusion(figures),
        "curves": [chart for chart in (_mean_curve(scores), _thresholds(figures)) if chart is not None],
        "class_curves": curves,
        "curves_left_out": int((counts > 0).sum()) - len(curves),
        "score_charts": [chart for chart in _score_charts(figures) if chart is not None],
    }


def queries_part(figures: dict[str, Any]) -> dict[str, Any]:
    activation, boxes = figures["activation"], np.array(figures["boxes"])
    counts = np.array(activation["counts"])
    order = np.argsort(-counts, kind="stable")
    gini = activation["gini"]
    x, y = np.array(activation["lorenz"]).T
    most = max(int(counts.max()), 1)
    labels = [
        f"query {i}: active in {counts[i]} images, mean size {w:.2f} × {h:.2f}, centre spread {a:.2f}, {b:.2f}"
        for i, ((_, _, w, h), (a, b)) in enumerate(zip(boxes, figures["spread"], strict=True))
    ]
    points = [(cx, cy, math.sqrt(w * h), counts[i] / most) for i, (cx, cy, w, h) in enumerate(boxes)]
    charts = [
        bar_chart(
            "How often each query is active",
            [f"query {i}" for i in order],
            [("images", counts[order].tolist())],
            "queries, by falling count",
            "images",
        ),
        line_chart(
            "Lorenz curve of the activations",
            [Series("share of detections", x, y)],
            "share of queries",
            "share of activations",
            x_range=(0, 1),
            y_range=(0, 1),
            diagonal=True,
            last_values=False,
            note="Along the dashed line all queries would be equally active.",
        ),
        scatter_chart(
            "Mean box of each query",
            points,
            labels,
            "x, share of the width",
            "y, share of the height",
            note="Each circle is at the mean centre of a query's boxes over the images. It grows with their mean size, "
            "and the more often it is active, the more opaque it is; open circles are never active. Queries that are "
            "proposals of an encoder, ranked anew for each image, have boxes all over it, and their means are near the "
            "middle.",
        ),
    ]
    tiles = [
        ("Queries", number(activation["queries"]), ""),
        ("Active", number(activation["active_queries"]), "in at least one image"),
        ("Gini coefficient", "–" if gini is None else f"{gini:.2f}", "0: all equally active"),
        (
            "Detections",
            number(activation["detections"]),
            f"{activation['detections'] / activation['images']:.1f} per image",
        ),
    ]
    tables = [_table(each) for each in figures["tables"]]
    return {"images": activation["images"], "tiles": tiles, "charts": charts, "tables": tables}


def _overall(values: dict[str, float], caption: str) -> Table:
    names = [name for name in _AP if name in values]
    rows = [[Cell(name), Cell(_MEANING[name]), _cell(values[name])] for name in names]
    return Table("Overall", caption, ["metric", "over", "value"], rows, [False, False, True])


def _by_size(figures: Breakdown) -> Table:
    rows = [
        [
            Cell(name),
            Cell(size["range"]),
            Cell(number(size["objects"]), size["objects"]),
            _cell(size["AP"]),
            _cell(size["AR"]),
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
    rows = [[Cell(name), Cell(meaning), _cell(values[name])] for name, meaning in limits.items()]
    caption = "Average recall over IoU 0.50 to 0.95, in percent"
    return Table("Recall", caption, ["metric", "with", "value"], rows, [False, False, True])


def _by_class(figures: Breakdown, threshold: str) -> Table:
    rows = []
    for name, aps, counts in zip(figures.names, figures.scores.per_class(), figures.classes.tolist(), strict=True):
        objects, correct, wrong = counts
        recall = 100 * correct / objects if objects else math.nan
        precision = 100 * correct / (correct + wrong) if correct + wrong else math.nan
        values = [_cell(aps[key]) for key in ("AP", "AP50", "AP75")]
        rows.append([Cell(name), Cell(number(objects), objects), *values, _cell(recall), _cell(precision)])
    heads = ["class", "objects", "AP", "AP50", "AP75", "recall", "precision"]
    caption = (
        f"Of the detections, in percent. Recall and precision count detections with a score of {threshold} or more, "
        "and an IoU of 0.5 as correct."
    )
    return Table("By class", caption, heads, rows, [False] + [True] * 6, sortable=True)


def _table(table: QueryTable) -> Table:
    def cell(value: str | int | float) -> Cell:
        if isinstance(value, str):
            return Cell(value)
        return Cell(number(value) if isinstance(value, int) else f"{value:.1f}", value)

    numeric = [not any(isinstance(row[column], str) for row in table.rows) for column in range(len(table.columns))]
    rows = [[cell(value) for value in row] for row in table.rows]
    return Table(table.title, table.caption, list(table.columns), rows, numeric)


def _confusion(figures: Breakdown) -> dict[str, Any]:
    matrix, names = figures.confusion, [*figures.names, "background"]
    errors = (matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal())[:-1]
    kept = sorted(np.argsort(-errors, kind="stable")[:MOST_CLASSES].tolist())
    rows = []
    for k in [*kept, len(names) - 1]:
        total = max(int(matrix[k].sum()), 1)
        row = [(int(matrix[k, j]), f"{0.6 * matrix[k, j] / total:.3f}") for j in [*kept, len(names) - 1]]
        rows.append((names[k], row))
    rows[-1][1][-1] = ("", "0")
    return {"names": [names[k] for k in kept], "rows": rows, "left_out": len(figures.names) - len(kept)}


def _mean_curve(scores: BoxScores) -> Chart | None:
    chosen = (("IoU 0.50", slice(0, 1)), ("IoU 0.75", slice(5, 6)), ("mean of 0.50 to 0.95", slice(None)))
    curves = []
    for name, thresholds in chosen:
        precision = scores.precision[thresholds, :, :, 0, -1]
        kept = precision[:, :, (precision > -1).all((0, 1))]
        if kept.size:
            curves.append(Series(name, scores.recall_thresholds, kept.mean((0, 2))))
    unit = {"x_range": (0, 1), "y_range": (0, 1)}
    title = "Precision over recall, mean over classes"
    return line_chart(title, curves, "recall", "precision", last_values=False, **unit)


def _thresholds(figures: Breakdown) -> Chart | None:
    """Precision and recall over the score threshold, of all classes together."""
    scores, right = figures.judged
    places = np.linspace(LEAST_SCORE, 1, 96)
    order = np.argsort(scores)
    kept = len(scores) - np.searchsorted(scores[order], places)
    correct = right.sum() - np.concatenate([[0], right[order].cumsum()])[len(scores) - kept]
    precision = np.divide(correct, kept, out=np.full(len(places), np.nan), where=kept > 0)
    recall = correct / max(figures.objects, 1)
    curves = [Series("precision", places, precision), Series("recall", places, recall)]
    unit = {"x_range": (0, 1), "y_range": (0, 1)}
    title = "Precision and recall over the score threshold, IoU 0.5"
    return line_chart(
        title, curves, "score threshold", "share", last_values=False, note="All classes together.", **unit
    )


def _score_charts(figures: Breakdown) -> list[Chart | None]:
    scores, right = figures.judged
    edges = np.linspace(LEAST_SCORE, 1, 20)
    correct, wrong = (np.histogram(scores[kind], edges)[0] for kind in (right, ~right))
    labels = [f"score {low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    note = f"Correct by an IoU of 0.5 and the class. Detections with scores below {LEAST_SCORE:g} are left out."
    series = [("correct", correct.tolist()), ("wrong", wrong.tolist())]
    title = "Detections by score"
    counts = bar_chart(title, labels, series, "score", "detections", edges=edges.tolist(), note=note)
    total = correct + wrong
    share = np.divide(correct, total, out=np.full(len(total), np.nan), where=total > 0)
    calibration = line_chart(
        "Share of correct detections by score",
        [Series("correct", (edges[:-1] + edges[1:]) / 2, share)],
        "score",
        "share",
        x_range=(0, 1),
        y_range=(0, 1),
        markers=True,
        diagonal=True,
        last_values=False,
        note="Along the dashed line scores would be probabilities.",
    )
    return [counts, calibration]


def _existing(precision: np.ndarray) -> np.ndarray:
    return np.where(precision > -1, precision, np.nan)


def _mean(precision: np.ndarray) -> float:
    return float(np.mean(precision)) if (precision > -1).all() else math.nan


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _pr(name: str) -> str:
    return f"Precision over recall of class {name} at an IoU of 0.5"


def _cell(value: float) -> Cell:
    return Cell("–") if value is None or math.isnan(value) else Cell(f"{value:.1f}", round(value, 4))
