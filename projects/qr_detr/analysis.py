"""Analyses: how many queries pass the routers of a decoder, what that saves; and AP with fewer queries."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrx.analysis.figure import new_figure
from detrx.analysis.flops import count_flops
from detrx.analysis.queries import QUERY_ANALYSES, QueryAnalysis, QueryTable, Subject
from detrx.analysis.timing import interleaved_times
from detrx.d2.config import instantiate
from detrx.d2.structures import Instances
from detrx.engine.config import without_pretrained
from detrx.errors import InvalidInputError
from detrx.modeling import DetectionTransformer

from .reduction import ReductionAnalysis

__all__ = ["ReductionAnalysis", "RoutingAnalysis", "routed_layers"]

ROUNDS = 3
"""Timed detections of each image."""


@QUERY_ANALYSES.register()
class RoutingAnalysis(QueryAnalysis):
    """Counts, for each image, the queries that pass the router of each decoder layer, the multiply-adds, and the time.

    Args:
        model: detector in evaluation mode; its decoder layers have a `router`, whose first output is the (1, N) bool
            mask of the passing queries. It is called with one image at a time.
        model_cfg: config of the model. Without its methods, it describes the plain detector, whose costs are measured
            for comparison.
        cost_images: count the multiply-adds of the first `cost_images` images and time their detection.

    Raises:
        ValueError: the model has no routers.
    """

    name = "routing"
    in_report = True
    help = (
        "QR-DETR: number of queries that pass the router of each layer, multiply-adds and time, also without routing "
        "(routing.json, routing.png); with --study also a table (routing.md)"
    )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--cost-images",
            type=int,
            default=10,
            metavar="N",
            help="with --routing: count the multiply-adds of the first N images and time them (default: 10)",
        )

    @classmethod
    def applies_to(cls, model: nn.Module) -> bool:
        return isinstance(model, DetectionTransformer) and bool(routed_layers(model))

    @classmethod
    def of(cls, subject: Subject) -> RoutingAnalysis:
        return cls(subject.model, subject.model_cfg, subject.option("cost_images", 0))

    def __init__(self, model: DetectionTransformer, model_cfg: Any, cost_images: int = 10):
        self.model = model
        if cost_images < 0:
            raise InvalidInputError(f"routing: cost_images must be 0 or more, got {cost_images}")
        self.layers = routed_layers(model)
        if not self.layers:
            raise InvalidInputError(
                "routing: the decoder layers of this model have no router; add QueryRouting to its methods"
            )
        self.counts: list[list[int]] = [[] for _ in self.layers]
        self.queries = 0
        self.cost_images = cost_images
        self.macs: dict[str, list[int]] = {"routed": [], "plain": []}
        self.times: dict[str, list[float]] = {"routed": [], "plain": []}
        self.plain: nn.Module | None = None
        if cost_images:
            plain = without_pretrained(copy.deepcopy(model_cfg))
            plain.methods = []
            self.plain = instantiate(plain).to(model.device).eval()
        self.passing: list[Tensor] = []
        model.register_forward_pre_hook(lambda *_: self.passing.clear())
        for layer in self.layers:
            self.watch(layer.router, self._note)

    def _note(self, inputs: tuple[Any, ...], output: Any) -> None:
        self.passing.append(output[0])

    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Process an image after the model was called with it."""
        of_layers = self.passing[: len(self.layers)]  # others may have run the decoder again since
        for of_layer, keep in zip(self.counts, of_layers, strict=True):
            of_layer.append(int(keep.sum()))
        self.queries = of_layers[0].shape[1]
        if self.images < self.cost_images and self.plain is not None:
            self.measure(inputs, {"routed": self.model, "plain": self.plain})
        self.images += 1

    def measure(self, inputs: dict[str, Any], models: dict[str, nn.Module]) -> None:
        """Add the multiply-adds and the times (ms) of each model on an image to `macs` and `times`.

        Args:
            inputs: an element of the model's input.
            models: by name: "routed" and "plain".
        """
        image = self.model.preprocess([inputs]).tensor
        for name, model in models.items():
            self.macs[name].append(int(count_flops(model, image).total()))
        calls = {name: partial(model, [inputs]) for name, model in models.items()}
        for name, times in interleaved_times(calls, ROUNDS, str(self.model.device)).items():
            self.times[name] += times

    def figures(self) -> dict[str, Any]:
        """Contents of `routing.json`; counts are queries per image."""
        result: dict[str, Any] = {
            "images": self.images,
            "queries": self.queries,
            "mean_passing": statistics.fmean(statistics.fmean(counts) for counts in self.counts),
            "layers": [
                {
                    "layer": index,
                    "wrapped": getattr(layer, "wrapped", None),
                    "mean_passing": statistics.fmean(counts),
                    "std_passing": statistics.pstdev(counts),
                    "min_passing": min(counts),
                    "max_passing": max(counts),
                    "passing": counts,
                }
                for index, (layer, counts) in enumerate(zip(self.layers, self.counts, strict=True))
            ],
        }
        if self.macs["routed"]:
            images = {"images": len(self.macs["routed"])}
            result["multiply_adds"] = images | {name: statistics.fmean(values) for name, values in self.macs.items()}
            result["milliseconds"] = images | {name: statistics.median(times) for name, times in self.times.items()}
        return result

    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        self.plot(folder / "routing.png")
        lines = [f"{figures['mean_passing']:.1f} of {self.queries} queries pass a router, on average over the layers"]
        lines += [
            f"  layer {each['layer']} ({each['wrapped']}): {each['mean_passing']:.1f} "
            f"({each['min_passing']} to {each['max_passing']})"
            for each in figures["layers"]
        ]
        if macs := figures.get("multiply_adds"):
            ratio = macs["routed"] / macs["plain"]
            lines.append(
                f"multiply-adds per image: {macs['routed'] / 1e9:.3f} G, without routing {macs['plain'] / 1e9:.3f} G "
                f"({ratio:.3f}), over {macs['images']} images"
            )
            times = figures["milliseconds"]
            lines.append(
                f"median time of a detection: {times['routed']:.1f} ms, without routing {times['plain']:.1f} ms "
                f"({times['routed'] / times['plain']:.3f}), on {self.model.device.type}"
            )
        return lines, ["routing.png"]

    def table(self) -> QueryTable:
        rows = tuple(
            (
                each["layer"],
                each["wrapped"] or "–",
                float(each["mean_passing"]),
                each["min_passing"],
                each["max_passing"],
            )
            for each in self.figures()["layers"]
        )
        columns = ("layer", "routed part", "mean", "least", "most")
        return QueryTable("Routing", f"Queries of {self.queries} that pass each router, per image", columns, rows)

    @classmethod
    def compare(cls, analyses: Mapping[str, Mapping[int, RoutingAnalysis]], folder: Path) -> str:
        """Write `routing.md`: the means of all seeds of each variant."""
        lines = [
            "| variant | passing, mean of the layers | by layer | GMACs | without routing | ms | without routing |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, of_seeds in analyses.items():
            figures = [analysis.figures() for analysis in of_seeds.values()]
            mean = statistics.fmean(each["mean_passing"] for each in figures)
            by_layer = zip(*([layer["mean_passing"] for layer in each["layers"]] for each in figures), strict=True)
            cells = [f"{mean:.1f}", ", ".join(f"{statistics.fmean(values):.1f}" for values in by_layer)]
            for key, unit in (("multiply_adds", 1e9), ("milliseconds", 1.0)):
                for which in ("routed", "plain"):
                    values = [each[key][which] / unit for each in figures if key in each]
                    cells.append(f"{statistics.fmean(values):.2f}" if values else "-")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        table = "\n".join(lines) + "\n"
        (folder / "routing.md").write_text(table, encoding="utf-8")
        return table

    def plot(self, file: Path) -> None:
        """Draw a histogram of the passing queries per image for each layer."""
        columns = min(3, len(self.counts))
        rows = -(-len(self.counts) // columns)
        figure = new_figure(4 * columns, 3 * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        bins = torch.linspace(0, self.queries, min(self.queries, 50) + 1).tolist()
        for index, (panel, counts) in enumerate(zip(panels, self.counts, strict=False)):
            wrapped = getattr(self.layers[index], "wrapped", None)
            panel.hist(counts, bins=bins, color="C0")
            panel.axvline(statistics.fmean(counts), color="C1", label=f"mean {statistics.fmean(counts):.1f}")
            panel.set_title(f"layer {index}" + (f": {wrapped}" if wrapped else ""))
            panel.set_xlabel(f"passing queries of {self.queries}")
            panel.set_ylabel("images")
            panel.legend()
        for panel in panels[len(self.counts) :]:
            panel.set_visible(False)
        figure.savefig(file)


def routed_layers(model: DetectionTransformer) -> list[nn.Module]:
    """The decoder layers with a router."""
    return [layer for layer in model.decoder.layers if getattr(layer, "router", None) is not None]
