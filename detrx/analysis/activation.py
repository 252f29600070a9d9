"""Which queries of a detector become detections, and how unequally."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrx.coco.results import instances_on_host
from detrx.d2.structures import Instances
from detrx.modeling import DetectionTransformer, EncoderProposals, as_detection_transformer

from .figure import new_figure
from .queries import QUERY_ANALYSES, QueryAnalysis, Subject

if TYPE_CHECKING:
    from typing_extensions import Self


def gini(counts: Sequence[float] | np.ndarray) -> float:
    """Gini coefficient of counts: 0 if all are equal, (n - 1) / n if only one of n is not zero; NaN if all are zero."""
    values = np.sort(np.asarray(counts, dtype=float))
    if not values.sum():
        return float("nan")
    count = len(values)
    return float((2 * np.arange(1, count + 1) - count - 1) @ values / (count * values.sum()))


def lorenz(counts: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n + 1, 2): the share of the counts that the least active i of n queries have together, beside i / n.

    Without any count the shares are zero.
    """
    values = np.sort(np.asarray(counts, dtype=float))
    shares = np.concatenate([[0.0], values.cumsum()]) / max(values.sum(), np.finfo(float).tiny)
    return np.stack([np.linspace(0, 1, len(shares)), shares], axis=1)


def index_of_queries(model: DetectionTransformer) -> str:
    """What the index of a query means: proposals are ranked anew in each image, other queries stay the same."""
    return "rank of the proposal" if isinstance(model.query_source, EncoderProposals) else "learned query"


@QUERY_ANALYSES.register()
class ActivationAnalysis(QueryAnalysis):
    """Counts, image by image, the queries that end as confident detections.

    A query counts once in an image, for however many classes it is confident.

    Args:
        model: in evaluation mode; it is called with one image at a time.
        score_threshold: least score of a confident detection.
    """

    name = "activation"
    help = (
        "how often each query is a confident detection: counts, Gini coefficient, Lorenz curve (activation.json, "
        "activation.png); with --study also a table of the Gini coefficients (gini.json, gini.md)"
    )

    @classmethod
    def of(cls, subject: Subject) -> ActivationAnalysis:
        return cls(as_detection_transformer(subject.model), subject.score_threshold)

    def __init__(self, model: DetectionTransformer, score_threshold: float = 0.5):
        self.score_threshold = score_threshold
        self.index = index_of_queries(model)
        self.counts = np.zeros(0, dtype=np.int64)
        self.detections = 0
        self.watch(model.query_source, self._note_queries)

    def _note_queries(self, inputs: tuple[Any, ...], output: Any) -> None:
        if not self.images:
            self.counts = np.zeros(output[0].content.shape[1], dtype=np.int64)

    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Take account of an image that the model was called with."""
        (found,) = instances_on_host([instances])
        queries = found.pred_queries[found.scores >= self.score_threshold].numpy()
        self.counts[np.unique(queries)] += 1
        self.images += 1
        self.detections += len(queries)

    @property
    def gini(self) -> float:
        """Gini coefficient of the counts; NaN without any confident detection."""
        return gini(self.counts)

    def figures(self) -> dict[str, Any]:
        """What `activation.json` holds.

        `index`: what the index of a query means; `counts`: in how many images each query was a confident detection;
        `gini` and `lorenz` of them, `gini` being None if there was none.
        """
        return {
            "images": self.images,
            "queries": len(self.counts),
            "index": self.index,
            "score_threshold": self.score_threshold,
            "detections": self.detections,
            "active_queries": int((self.counts > 0).sum()),
            "gini": None if np.isnan(self.gini) else self.gini,
            "counts": self.counts.tolist(),
            "lorenz": lorenz(self.counts).tolist(),
        }

    def scalars(self) -> dict[str, float]:
        return {"gini/activation": self.gini}

    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        plot_activation(figures, folder / "activation.png")
        coefficient = "undefined" if figures["gini"] is None else f"{figures['gini']:.3f}"
        line = (
            f"{figures['active_queries']} of {figures['queries']} queries (index: {self.index}) were detections with a "
            f"score of {self.score_threshold:g} or more in {self.images} images; Gini coefficient: {coefficient}"
        )
        return [line], ["activation.png"]

    @classmethod
    def compare(cls, analyses: Mapping[str, Mapping[int, Self]], folder: Path) -> str:
        return gini_table({n: {seed: each.gini for seed, each in v.items()} for n, v in analyses.items()}, folder)


def gini_table(coefficients: Mapping[str, Mapping[int, float]], folder: Path, name: str = "gini") -> str:
    """Write `<name>.json` and `<name>.md` with the Gini coefficients of variants and seeds; returns the Markdown
    table."""
    lines = ["| variant | Gini coefficient | of each seed |", "|---|---|---|"]
    for variant, by_seed in coefficients.items():
        values = list(by_seed.values())
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {variant} | {statistics.fmean(values):.3f}{spread} | {each} |")
    table = "\n".join(lines) + "\n"
    finite = {
        variant: {seed: None if np.isnan(value) else value for seed, value in by_seed.items()}
        for variant, by_seed in coefficients.items()
    }
    (folder / f"{name}.json").write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    return table


def plot_activation(figures: dict[str, Any], file: Path) -> None:
    """The counts of all queries by falling count, and their Lorenz curve."""
    figure = new_figure(11, 4)
    bars, curve = figure.subplots(1, 2)
    counts = np.sort(figures["counts"])[::-1]
    bars.bar(np.arange(len(counts)), counts, width=1.0, color="C0")
    bars.set(title="How often each query is a detection", xlabel=f"queries ({figures['index']}), by falling count")
    bars.set_ylabel("images")
    x, y = np.array(figures["lorenz"]).T
    label = "no detections" if figures["gini"] is None else f"Gini coefficient {figures['gini']:.3f}"
    curve.plot(x, y, color="C0", label=label)
    curve.plot([0, 1], [0, 1], "--", color="grey", label="all alike")
    curve.fill_between(x, y, x, color="C0", alpha=0.15)
    curve.set(title="Lorenz curve", xlabel="share of queries", ylabel="share of detections", xlim=(0, 1), ylim=(0, 1))
    curve.legend(frameon=False)
    figure.savefig(file)
