"""AP of a trained detector with fewer queries and without one of the two attentions (section 3.3 of QR-DETR)."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrx.analysis.figure import new_figure
from detrx.analysis.queries import QUERY_ANALYSES, QueryAnalysis, Subject
from detrx.coco.results import instances_on_host
from detrx.d2.evaluation import DatasetEvaluator
from detrx.d2.structures import Instances
from detrx.errors import InvalidInputError
from detrx.modeling import (
    Decoder,
    DetectionTransformer,
    MultiScaleTokens,
    Predictions,
    QueryGroup,
    as_detection_transformer,
)

WITH = {
    "both": "self- and cross-attention",
    "self_attn": "self-attention only",
    "cross_attn": "cross-attention only",
}
"""The configurations of Fig. 2a."""
KEPT = ("first", "random", "best")


@QUERY_ANALYSES.register()
class ReductionAnalysis(QueryAnalysis):
    """Scores a detector whose decoder gets only some of its queries, with both attentions, without cross-attention and
    without self-attention. An attention that is left out adds nothing; its residual and LayerNorm stay.

    The image is encoded once. The queries that are kept stay in their order.

    Args:
        model: in evaluation mode; it is called with one image at a time.
        evaluator: scores the detections.
        counts: numbers of queries; None: six equal steps, from all of them down. If anchors have several patterns, only
            multiples of their number.
        kept: which queries are kept: "first", by index (in two-stage detectors, the best proposals); "random", the same
            in all images; "best", for each image those with the highest scores in the detections of all queries. The
            first and the random ones are anchors with all their patterns.
    """

    name = "reduction"
    help = (
        "AP with fewer queries, and with self-attention or cross-attention only, section 3.3 of QR-DETR "
        "(reduction.json, reduction.png)"
    )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--counts",
            type=int,
            nargs="+",
            metavar="N",
            help="with --reduction: numbers of queries (default: all of them, 5/6, 4/6, ... 1/6)",
        )
        parser.add_argument(
            "--kept",
            choices=KEPT,
            default=KEPT[0],
            help="with --reduction: the queries to keep: the first ones, random ones, the same in all images, or for "
            "each image those with the highest scores (default: first)",
        )

    @classmethod
    def of(cls, subject: Subject) -> ReductionAnalysis:
        if subject.make_evaluator is None:
            raise InvalidInputError("reduction: the config has no dataloader.evaluator, which scores the detections")
        evaluator = subject.make_evaluator()
        if subject.option("num", None) is not None and not scores_some_images(evaluator):
            raise InvalidInputError(
                f"reduction: {type(evaluator).__name__} scores all images of the dataset: leave out --num"
            )
        model = as_detection_transformer(subject.model)
        return cls(model, evaluator, subject.option("counts", None), subject.option("kept", KEPT[0]))

    def __init__(
        self,
        model: DetectionTransformer,
        evaluator: DatasetEvaluator,
        counts: Sequence[int] | None = None,
        kept: str = "first",
    ):
        anchors, self.patterns = model.query_source.num_queries, model.query_source.patterns_per_anchor
        self.queries = anchors * self.patterns
        if counts is None:
            counts = {max(1, anchors * sixths // 6) * self.patterns for sixths in range(1, 7)}
        if not counts or not all(1 <= count <= self.queries for count in counts):
            raise InvalidInputError(f"reduction: counts must be from 1 to {self.queries} queries, got {list(counts)}")
        if any(count % self.patterns for count in counts):
            raise InvalidInputError(
                f"reduction: counts must be multiples of {self.patterns}, the number of patterns "
                f"(model.query_source.num_patterns) of each of the {anchors} anchors, got {list(counts)}"
            )
        if kept not in KEPT:
            raise InvalidInputError(f"reduction: kept must be one of {', '.join(KEPT)}, got {kept!r}")
        self.model, self.evaluator, self.kept = model, evaluator, kept
        self.counts = sorted(set(counts), reverse=True)
        self.shuffled = torch.randperm(anchors, generator=torch.Generator().manual_seed(0))
        self.found: dict[tuple[str, int], list[tuple[dict[str, Any], Instances]]] = {
            (used, count): [] for used in WITH for count in self.counts
        }
        self.noted: tuple[MultiScaleTokens, QueryGroup] | None = None
        self.watch(model.query_source, self._note)

    def _note(self, inputs: tuple[Any, ...], output: Any) -> None:
        self.noted = inputs[0], output[0]

    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        if self.noted is None:
            raise InvalidInputError("reduction: the model was not called with the image")
        memory, main = self.noted
        size, frame = tuple(inputs["image"].shape[-2:]), instances.image_size
        source = {key: value for key, value in inputs.items() if key != "image"}
        order = self.order(main, memory)
        for used in WITH:
            with without(self.model.decoder, used):
                for count in self.counts:
                    index = order[:, :count].sort(dim=1).values
                    predictions = self.model.decoder([rows_of(main, index)], memory)["main"]
                    (found,) = instances_on_host(self.model.postprocess(predictions, [size], [frame]))
                    self.found[used, count].append((source, found))
        self.images += 1

    def order(self, main: QueryGroup, memory: MultiScaleTokens) -> Tensor:
        """(1, N) indices of the queries, those to keep first."""
        device, anchors = main.content.device, main.content.shape[1] // self.patterns
        if self.kept == "first":
            return self.with_patterns(torch.arange(anchors), anchors).to(device)
        if self.kept == "random":
            return self.with_patterns(self.shuffled[self.shuffled < anchors], anchors).to(device)
        predictions: Predictions = self.model.decoder([main], memory)["main"]
        scores = self.model.postprocess.scores(predictions).amax(-1)
        if main.padding is not None:
            scores = scores.masked_fill(main.padding, -1.0)
        return scores.argsort(dim=1, descending=True, stable=True)

    def with_patterns(self, order: Tensor, anchors: int) -> Tensor:
        """Indices of anchors -> (1, N) indices of the queries: for each anchor those of all patterns."""
        return (order[:, None] + anchors * torch.arange(self.patterns)).flatten()[None]

    def figures(self) -> dict[str, Any]:
        """Contents of `reduction.json`; scores are those of the evaluator, in percent, None where there is none."""
        return {
            "images": self.images,
            "queries": self.queries,
            "kept": self.kept,
            "counts": self.counts,
            "with": {used: [self.score(self.found[used, count]) for count in self.counts] for used in WITH},
        }

    def score(self, found: Sequence[tuple[dict[str, Any], Instances]]) -> dict[str, float | None]:
        """The metrics of these detections, but those of single classes."""
        self.evaluator.reset()
        for source, instances in found:
            self.evaluator.process([source], [{"instances": instances}])
        images = {"img_ids": [source["image_id"] for source, _ in found]} if scores_some_images(self.evaluator) else {}
        metrics = self.evaluator.evaluate(**images).get("bbox", {})
        if "AP" not in metrics:
            raise InvalidInputError(f"reduction: {type(self.evaluator).__name__} gave no AP of boxes, got {metrics}")
        return {
            name: None if math.isnan(value) else float(value)
            for name, value in metrics.items()
            if not name.startswith("AP-")
        }

    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        plot(figures, folder / "reduction.png")
        lines = [f"AP over {self.images} images with {' / '.join(map(str, self.counts))} of {self.queries} queries"]
        for used, title in WITH.items():
            values = [each["AP"] for each in figures["with"][used]]
            lines.append(f"  {title}: " + " / ".join("-" if ap is None else f"{ap:.1f}" for ap in values))
        return lines, ["reduction.png"]


def scores_some_images(evaluator: DatasetEvaluator) -> bool:
    """Whether an evaluator can be told which images of the dataset to score, with `evaluate(img_ids=...)`."""
    return "img_ids" in inspect.signature(evaluator.evaluate).parameters


def rows_of(group: QueryGroup, index: Tensor) -> QueryGroup:
    """A group without blocked pairs, with the queries `index` (B, M) only."""

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.take_along_dim(index[..., None], dim=1)

    padding = None if group.padding is None else group.padding.gather(1, index)
    content, pos, reference = rows(group.content), rows(group.pos), rows(group.reference)
    return replace(group, content=content, pos=pos, reference=reference, padding=padding)


@contextmanager
def without(decoder: Decoder, used: str) -> Iterator[None]:
    """In this context, the attention that is not in `used` (a key of `WITH`) adds zeros in all layers."""
    modules = {
        "both": [],
        "self_attn": [layer.cross_attn for layer in decoder.layers],
        "cross_attn": [layer.self_attn.out_proj for layer in decoder.layers],
    }[used]
    hooks = [each.register_forward_hook(lambda module, args, out: torch.zeros_like(out)) for each in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def plot(figures: dict[str, Any], file: Path) -> None:
    """The AP of all queries by the attentions in use (Fig. 2a), and against the number of queries (Fig. 2b)."""
    figure = new_figure(10, 4)
    bars, curves = figure.subplots(1, 2)
    counts, queries = figures["counts"], figures["queries"]
    values = {used: [math.nan if each["AP"] is None else each["AP"] for each in figures["with"][used]] for used in WITH}
    for place, (used, title) in enumerate(WITH.items()):
        drawn = bars.bar(place, values[used][0], color=f"C{place}", width=0.6)
        bars.bar_label(drawn, fmt="%.1f")
        curves.plot(counts, values[used], "o-", color=f"C{place}", label=title)
    bars.set_xticks(
        range(len(WITH)), [title.replace(" only", "\nonly").replace("and ", "and\n") for title in WITH.values()]
    )
    bars.set(title=f"Attentions in use, {counts[0]} queries", ylabel="AP")
    bars.margins(y=0.1)
    curves.set(title=f"Queries kept: {figures['kept']}", xlabel=f"queries, of {queries}", ylabel="AP")
    curves.set_ylim(bottom=0)
    curves.invert_xaxis()
    curves.grid(alpha=0.3)
    curves.legend(frameon=False)
    figure.savefig(file)
