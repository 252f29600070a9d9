"""The sections on detections: confusion matrix, precision over recall, scores."""

import itertools
from typing import Any

import numpy as np

from detrx.evaluation import BoxScores

from .charts import Chart, Series, bar_chart, share_chart
from .detection_statistics import LEAST_SCORE, DetectionStatistics
from .detections import Absent
from .example_images import ExampleImages

MOST_CLASSES, MOST_CURVES = 30, 80


def detections_section(figures: DetectionStatistics, examples: ExampleImages | Absent) -> dict[str, Any]:
    charts = [_mean_curve(figures.scores), _thresholds(figures)]
    return {
        "source": figures.detections.source,
        "examples": examples,
        "confusion": _confusion(figures),
        "curves": [chart for chart in charts if chart is not None],
        "class_curves": _class_curves(figures),
        "score_charts": [chart for chart in _score_charts(figures) if chart is not None],
    }


def _confusion(figures: DetectionStatistics) -> dict[str, Any]:
    matrix, names = figures.confusion, [*figures.names, "background"]
    errors = (matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal())[:-1]
    kept = sorted(np.argsort(-errors, kind="stable")[:MOST_CLASSES].tolist())
    rows: list[tuple[str, list[tuple[int | str, str]]]] = []
    for k in [*kept, len(names) - 1]:
        total = max(int(matrix[k].sum()), 1)
        counts = [int(matrix[k, j]) for j in [*kept, len(names) - 1]]
        rows.append((names[k], [(count, f"{0.6 * count / total:.3f}") for count in counts]))
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
    return share_chart("Precision over recall, mean over classes", curves, "recall", "precision")


def _class_curves(figures: DetectionStatistics) -> Chart | None:
    """A curve for each of the `MOST_CURVES` classes with most objects."""
    scores = figures.scores
    precision = scores.precision[0, :, :, 0, -1]  # IoU 0.5: (recall, class)
    counts = figures.confusion[:-1].sum(1)
    shown = [k for k in np.argsort(-counts, kind="stable")[:MOST_CURVES].tolist() if counts[k]]
    curves = [
        Series(
            f"{figures.names[k]}: AP50 {100 * precision[:, k].mean():.1f}", scores.recall_thresholds, precision[:, k]
        )
        for k in sorted(shown)
    ]
    left_out = int((counts > 0).sum()) - len(shown)
    note = "Click a class in the legend to hide it, double-click it to hide all others."
    if left_out:
        note += f" The {len(shown)} classes with most objects are shown; {left_out} are left out."
    chart = share_chart("Precision over recall of each class, IoU 0.5", curves, "recall", "precision", note=note)
    if chart is not None:
        legend = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"}
        chart.figure.update_layout(hovermode="closest", height=520, showlegend=True, legend=legend)
    return chart


def _thresholds(figures: DetectionStatistics) -> Chart | None:
    """Precision and recall over the score threshold, of all classes together."""
    scores, right = figures.matches
    places = np.linspace(LEAST_SCORE, 1, 96)
    order = np.argsort(scores)
    kept = len(scores) - np.searchsorted(scores[order], places)
    correct = right.sum() - np.concatenate([[0], right[order].cumsum()])[len(scores) - kept]
    precision = np.divide(correct, kept, out=np.full(len(places), np.nan), where=kept > 0)
    recall = correct / max(figures.objects, 1)
    curves = [Series("precision", places, precision), Series("recall", places, recall)]
    title = "Precision and recall over the score threshold, IoU 0.5"
    return share_chart(title, curves, "score threshold", "share", note="All classes together.")


def _score_charts(figures: DetectionStatistics) -> list[Chart | None]:
    scores, right = figures.matches
    edges = np.linspace(LEAST_SCORE, 1, 20)
    correct, wrong = (np.histogram(scores[kind], edges)[0] for kind in (right, ~right))
    labels = [f"score {low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    note = f"Correct: an IoU of 0.5 with an object of the class. Scores below {LEAST_SCORE:g} are left out."
    series = [("correct", correct.tolist()), ("wrong", wrong.tolist())]
    title = "Detections by score"
    counts = bar_chart(title, labels, series, "score", "detections", edges=edges.tolist(), note=note)
    total = correct + wrong
    share = np.divide(correct, total, out=np.full(len(total), np.nan), where=total > 0)
    calibration = share_chart(
        "Share of correct detections by score",
        [Series("correct", (edges[:-1] + edges[1:]) / 2, share)],
        "score",
        "share",
        markers=True,
        diagonal=True,
        note="On the dashed line, the score equals the share of correct detections.",
    )
    return [counts, calibration]
