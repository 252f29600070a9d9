"""Which queries of a detector receive supervision from training images, and how unequally."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from detrx.d2.structures import Instances
from detrx.d2.utils import EventStorage
from detrx.data.loader import random_state_of
from detrx.modeling import DetectionTransformer, Predictions, Supervision, Targets, as_detection_transformer
from detrx.modeling.matching import Assignment

from .activation import gini, gini_table, index_of_queries, lorenz
from .figure import new_figure
from .queries import QUERY_ANALYSES, QueryAnalysis, Subject

if TYPE_CHECKING:
    from typing_extensions import Self

MEASURES = {
    "positives_last_layer": "positives in the last layer",
    "positives": "positives in all layers",
    "gradient": "gradient norm",
}
"""What is summed for each query over the images: name in `supervision.json`, and in pictures."""


@QUERY_ANALYSES.register()
class SupervisionAnalysis(QueryAnalysis):
    """Sums, over training images, what each main query receives: pairs with ground truth, and gradient.

    The model runs a training step on each image, with the losses and assigners of its own supervisions of the main
    group, as its methods change them, and without the losses of other groups. Nothing is updated: neither weights nor
    the statistics of batch norm. The gradient is that of the summed losses with respect to the content with which a
    query enters the decoder; its L2 norm is summed.

    Args:
        model: called with one image at a time.
        iteration: the iteration of a training that the steps stand for, for methods that change with it.
    """

    name = "supervision"
    help = (
        "how many positives and how much gradient each query receives from training images: sums, Gini coefficients, "
        "Lorenz curves (supervision.json, supervision.png); with --study also tables of the Gini coefficients "
        "(gini_<measure>.json, gini_<measure>.md)"
    )
    on_training = True

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--train-dataset",
            metavar="NAME",
            help="with --supervision: registered dataset (default: the config's training dataset)",
        )

    @classmethod
    def of(cls, subject: Subject) -> SupervisionAnalysis:
        return cls(as_detection_transformer(subject.model), subject.iteration)

    def __init__(self, model: DetectionTransformer, iteration: int = 0):
        self.model, self.iteration = model, iteration
        self.index = index_of_queries(model)
        self.layers = len(model.decoder.layers)
        self.sums = {measure: np.zeros(0) for measure in MEASURES}
        self.boxes = 0

    @torch.enable_grad()
    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Run a training step on an image with its ground truth, as the training mapper makes it."""
        model, was_training = self.model, self.model.training
        model.train()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        contents: list[Tensor] = []
        hook = model.decoder.register_forward_pre_hook(lambda _, args: watch_content(args, contents))
        try:
            with EventStorage(self.iteration), random_state_of(0, self.images):
                self._step(inputs, instances, contents)
        finally:
            hook.remove()
            model.train(was_training)

    def _step(self, inputs: dict[str, Any], instances: Instances, contents: list[Tensor]) -> None:
        model = self.model
        targets = Targets.from_instances([instances], [inputs.get("image_id", 0)], model.device)
        predictions, _, step = model.train_step(model.preprocess([inputs]), targets)
        supervisions = [each for each in step.supervisions if each.group == "main"]
        criterion = model.training_criterion()
        assignments = criterion.assign(predictions, targets, supervisions)
        losses = criterion(predictions, targets, supervisions)
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), contents)
        positives = positives_by_layer(predictions["main"], supervisions, assignments)
        self._add("positives_last_layer", positives[-1])
        self._add("positives", positives.sum(0))
        self._add("gradient", gradient[0].float().norm(dim=-1).cpu().numpy())
        self.images += 1
        self.boxes += sum(targets.counts)

    def _add(self, measure: str, values: np.ndarray) -> None:
        sums = self.sums[measure]
        missing = len(values) - len(sums)  # small images may have fewer queries
        self.sums[measure] = np.pad(sums, (0, max(0, missing))) + np.pad(values, (0, max(0, -missing)))

    def gini(self, measure: str) -> float:
        """Gini coefficient of one of the `MEASURES`; NaN if it is zero for all queries."""
        return gini(self.sums[measure])

    def figures(self) -> dict[str, Any]:
        """What `supervision.json` holds.

        `index`: what the index of a query means; for each of the `MEASURES` its `sums` over the images by query, and
        their `gini` (None if all are zero) and `lorenz`.
        """
        figures: dict[str, Any] = {
            "images": self.images,
            "boxes": self.boxes,
            "queries": len(self.sums["gradient"]),
            "index": self.index,
            "layers": self.layers,
        }
        for measure, sums in self.sums.items():
            coefficient = gini(sums)
            figures[measure] = {
                "gini": None if np.isnan(coefficient) else coefficient,
                "sums": sums.tolist(),
                "lorenz": lorenz(sums).tolist(),
            }
        return figures

    def scalars(self) -> dict[str, float]:
        return {f"gini/{measure}": self.gini(measure) for measure in MEASURES}

    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        plot_supervision(figures, folder / "supervision.png")
        taught = sum(value > 0 for value in figures["positives"]["sums"])
        lines = [
            f"{taught} of {figures['queries']} queries (index: {figures['index']}) were positives in {self.images} "
            f"training images with {self.boxes} boxes"
        ]
        for measure, title in MEASURES.items():
            coefficient = figures[measure]["gini"]
            lines.append(f"Gini coefficient, {title}: {'undefined' if coefficient is None else f'{coefficient:.3f}'}")
        return lines, ["supervision.png"]

    @classmethod
    def compare(cls, analyses: Mapping[str, Mapping[int, Self]], folder: Path) -> str:
        tables = []
        for measure, title in MEASURES.items():
            found = {name: {seed: each.gini(measure) for seed, each in v.items()} for name, v in analyses.items()}
            tables.append(f"{title}:\n{gini_table(found, folder, f'gini_{measure}')}")
        return "\n".join(tables)


def watch_content(args: tuple[Any, ...], contents: list[Tensor]) -> tuple[Any, ...]:
    """The arguments of a decoder with a content of the main group that gets a gradient; it is added to `contents`."""
    (main, *others), *rest = args
    content = main.content.clone()
    if not content.requires_grad:
        content.requires_grad_()
    contents.append(content)
    return ([replace(main, content=content), *others], *rest)


def positives_by_layer(main: Predictions, supervisions: list[Supervision], assignments: list[Assignment]) -> np.ndarray:
    """(T, N) number of ground-truth boxes of an image that each query is paired with in each layer."""
    layers, _, queries = main.logits.shape[:3]
    counts = np.zeros((layers, queries))
    for supervision, pairs in zip(supervisions, assignments, strict=True):
        numbers = np.array(supervision.numbers(layers))
        np.add.at(counts, (numbers[pairs.layer.cpu().numpy()], pairs.query.cpu().numpy()), 1)
    return counts


def plot_supervision(figures: dict[str, Any], file: Path) -> None:
    """The sums of all queries by falling sum, and the Lorenz curves."""
    figure = new_figure(11, 7)
    *bars, curves = figure.subplots(2, 2).flat
    for number, (axes, (measure, title)) in enumerate(zip(bars, MEASURES.items(), strict=True)):
        sums = np.sort(figures[measure]["sums"])[::-1]
        axes.bar(np.arange(len(sums)), sums, width=1.0, color=f"C{number}")
        axes.set(title=title[0].upper() + title[1:], xlabel=f"queries ({figures['index']}), by falling sum")
        axes.set_ylabel(f"sum over {figures['images']} images")
        x, y = np.array(figures[measure]["lorenz"]).T
        coefficient = figures[measure]["gini"]
        label = "none" if coefficient is None else f"Gini coefficient {coefficient:.3f}"
        curves.plot(x, y, color=f"C{number}", label=f"{title}: {label}")
    curves.plot([0, 1], [0, 1], "--", color="grey", label="all alike")
    curves.set(title="Lorenz curves", xlabel="share of queries", ylabel="share of the sum", xlim=(0, 1), ylim=(0, 1))
    curves.legend(frameon=False, fontsize="small")
    figure.savefig(file)
