"""Analysis of the pairs of student and teacher queries, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detrx.analysis.figure import new_figure
from detrx.analysis.queries import QUERY_ANALYSES, QueryAnalysis, Subject
from detrx.d2.structures import Instances
from detrx.errors import InvalidInputError
from detrx.modeling import DetectionTransformer

from .distillation import Distillation
from .matching import AdaptiveMatcher, SoftClasses, least_cost_pairs
from .teacher import has_softmax


@QUERY_ANALYSES.register()
class PairsAnalysis(QueryAnalysis):
    """Counts, for each layer, how often adaptive matching pairs each of the student's main queries with each of the
    teacher's. If a query has the same partner in all images, matching has settled.

    Args:
        model: the student in evaluation mode. It must have a `Distillation` method; its teacher and cost are used, even
            if it was trained with another matching.

    Raises:
        ValueError: the model has no distillation.
    """

    name = "pairs"
    help = (
        "D3ETR: which teacher query adaptive matching pairs with each student query, and in how many images it is the "
        "same one (pairs.json, pairs.png)"
    )

    @classmethod
    def applies_to(cls, model: nn.Module) -> bool:
        return any(isinstance(method, Distillation) for method in getattr(model, "methods", ()))

    @classmethod
    def of(cls, subject: Subject) -> PairsAnalysis:
        return cls(subject.model)

    def __init__(self, model: DetectionTransformer):
        methods = [method for method in model.methods if isinstance(method, Distillation)]
        if not methods:
            raise InvalidInputError("pairs: this model has no teacher; add Distillation to its methods")
        self.model, self.method = model, methods[0]
        self.counts: np.ndarray | None = None  # (layers, student's queries, teacher's queries)

    @torch.no_grad()
    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Process an image."""
        images = self.model.preprocess([inputs])
        lesson = self.method.teacher.teach(self.model, images, [])
        self.method.teacher.forget()
        student = self.model.decode(self.model.encode(images))["main"]
        layers = min(len(student.logits), len(lesson.predictions.logits))
        student = student.of_layers(slice(len(student.logits) - layers, None))
        teacher = lesson.of_last_layers(layers).predictions
        classes = SoftClasses(has_softmax(self.model), self.method.class_reduction)
        matcher = self.method.assigner("adaptive", classes, student, teacher)
        assert isinstance(matcher, AdaptiveMatcher)
        cost = matcher.cost(student, teacher).cpu().numpy()
        if self.counts is None:
            self.counts = np.zeros((layers, *cost.shape[2:]), dtype=int)
        layer, _, query, partner = least_cost_pairs(cost).T
        self.counts[layer, query, partner] += 1
        self.images += 1

    def figures(self) -> dict[str, Any]:
        """Contents of `pairs.json`. Layer 0 is the first one that has a counterpart in the teacher."""
        layers = []
        for counts in self.counts:
            place = np.arange(min(counts.shape))
            layers.append(
                {
                    "commonest_partner": float(counts.max(1).mean() / self.images),
                    "partner_of_equal_place": float(counts[place, place].sum() / (len(counts) * self.images)),
                    "partners": counts.argmax(1).tolist(),
                    "shares": (counts.max(1) / self.images).tolist(),
                }
            )
        _, student, teacher = self.counts.shape
        return {"images": self.images, "student_queries": student, "teacher_queries": teacher, "layers": layers}

    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        self.plot(folder / "pairs.png")
        lines = [
            f"  layer {index}: a student query has its most frequent partner in {each['commonest_partner']:.1%} of the "
            f"images, and the teacher query of the same index in {each['partner_of_equal_place']:.1%}"
            for index, each in enumerate(figures["layers"])
        ]
        return [f"pairs of student and teacher in {self.images} images", *lines], ["pairs.png"]

    def plot(self, file: Path) -> None:
        """A map for each layer: student queries, sorted by their most frequent partner, against teacher queries."""
        layers = len(self.counts)
        columns = min(3, layers)
        rows = -(-layers // columns)
        figure = new_figure(4 * columns + 1, 4 * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for index, (panel, counts) in enumerate(zip(panels, self.counts, strict=False)):
            order = np.argsort(counts.argmax(1), kind="stable")
            shares = counts[order] / self.images
            picture = panel.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            panel.set(title=f"layer {index}", xlabel="query of the teacher", ylabel="queries of the student, sorted")
        for panel in panels[layers:]:
            panel.set_visible(False)
        figure.colorbar(picture, ax=panels, label="share of the images in which they are a pair")
        figure.savefig(file)
