"""Analysis of the patterns of pattern queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from detrx.analysis.figure import new_figure
from detrx.analysis.queries import QUERY_ANALYSES, QueryAnalysis, Subject
from detrx.coco.results import instances_on_host
from detrx.d2.structures import Instances
from detrx.errors import InvalidInputError, MissingImportError
from detrx.modeling import DetectionTransformer

from .patterns import PatternContent

LEAST_VECTORS = 4
"""Minimum number of different vectors for an embedding."""
MOST_QUERIES = 2000
"""Maximum number of detections, those of the first images, whose queries are embedded."""


@QUERY_ANALYSES.register()
class PatternsAnalysis(QueryAnalysis):
    """Collects the weights of the patterns: of the query of each confident detection, and means over the confident
    queries of each class and over all queries of each image.

    Args:
        model: detector in evaluation mode, with a `PatternContent`; it is called with one image at a time.
        class_names: names by class index.
        score_threshold: minimum score of a confident detection.

    Raises:
        ValueError: the model has no pattern queries.
        ImportError: scikit-learn, which computes the embedding, cannot be imported.
    """

    name = "patterns"
    help = (
        "PaQ-DETR: patterns used by each class, and embeddings of the images and of the queries of detections by their "
        "weights (patterns.json, patterns.png, embedding.png, query_embedding.png)"
    )

    @classmethod
    def applies_to(cls, model: nn.Module) -> bool:
        return isinstance(getattr(getattr(model, "query_source", None), "content", None), PatternContent)

    @classmethod
    def of(cls, subject: Subject) -> PatternsAnalysis:
        return cls(subject.model, subject.class_names, subject.score_threshold)

    def __init__(self, model: DetectionTransformer, class_names: Sequence[str], score_threshold: float = 0.5):
        if not self.applies_to(model):
            raise InvalidInputError(
                "patterns: this model has no pattern queries; give its query source a PatternContent as content"
            )
        check_scikit_learn()
        self.class_names = list(class_names)
        self.score_threshold = score_threshold
        self.weights: list[Tensor] = []
        self.of_images: list[np.ndarray] = []
        self.labels: list[tuple[Any, int]] = []
        self.of_queries: list[np.ndarray] = []
        self.query_labels: list[tuple[Any, int, int]] = []
        self.of_class: dict[int, tuple[int, np.ndarray]] = {}
        self.watch(model.query_source.content.generator, self._note_weights)

    def _note_weights(self, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.weights.append(output)

    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Process an image after the model was called with it."""
        (found,) = instances_on_host([instances])
        confident = found.scores >= self.score_threshold
        queries, classes = found.pred_queries[confident].numpy(), found.pred_classes[confident].numpy()
        weights = self.weights.pop()[0].float().cpu().numpy()
        self.weights.clear()
        image_id = inputs.get("image_id")
        for query, label in zip(queries.tolist(), classes.tolist(), strict=True):
            if len(self.of_queries) < MOST_QUERIES:
                self.of_queries.append(weights[query])
                self.query_labels.append((image_id, query, label))
            count, total = self.of_class.get(label, (0, np.zeros(weights.shape[1])))
            self.of_class[label] = (count + 1, total + weights[query])
        self.of_images.append(weights.mean(0))
        self.images += 1
        self.labels.append((image_id, int(np.bincount(classes).argmax()) if len(classes) else -1))

    def class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def figures(self) -> dict[str, Any]:
        """Contents of `patterns.json`.

        `usage`: for each class, the number of its detections and the mean weights of their queries. `embedding`: for
        each image, its id, the class with the most detections (None without detections) and the coordinates of its mean
        weights in the plane. `query_embedding`: for each of the first `MOST_QUERIES` detections, the image's id, the
        query, the class and the coordinates of the query's weights.
        """
        return {
            "images": self.images,
            "score_threshold": self.score_threshold,
            "usage": {
                self.class_name(label): {"detections": count, "weights": (total / count).tolist()}
                for label, (count, total) in sorted(self.of_class.items())
            },
            "embedding": [
                {"image_id": image_id, "class": None if label < 0 else self.class_name(label), "x": x, "y": y}
                for (image_id, label), (x, y) in zip(self.labels, embed(self.of_images), strict=False)
            ],
            "query_embedding": [
                {"image_id": image_id, "query": query, "class": self.class_name(label), "x": x, "y": y}
                for (image_id, query, label), (x, y) in zip(self.query_labels, embed(self.of_queries), strict=False)
            ],
        }

    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        detections = sum(each["detections"] for each in figures["usage"].values())
        lines = [f"patterns of {detections} detections in {figures['images']} images"]
        written = []
        few = f"there are fewer than {LEAST_VECTORS} different"
        for key, file, plot, why in (
            ("usage", "patterns.png", plot_usage, "there is no confident detection"),
            ("embedding", "embedding.png", plot_embedding, f"{few} images"),
            ("query_embedding", "query_embedding.png", plot_query_embedding, f"{few} queries of detections"),
        ):
            if figures[key]:
                plot(figures[key], folder / file)
                written.append(file)
            else:
                lines.append(f"{file} is not drawn: {why}")
        return lines, written


def embed(rows: Sequence[np.ndarray]) -> list[list[float]]:
    """t-SNE of vectors in a plane; empty if fewer than `LEAST_VECTORS` of them are different."""
    if not rows or len(np.unique(rows, axis=0)) < LEAST_VECTORS:
        return []
    from sklearn.manifold import TSNE

    # Weights of many patterns differ little: without scaling, their squared distances would be lost in rounding.
    vectors = np.stack(rows).astype(np.float64)
    vectors = (vectors - vectors.mean(0)) / (vectors - vectors.mean(0)).std()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors).tolist()


def check_scikit_learn() -> None:
    try:
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise MissingImportError(
            "patterns: the embedding of pattern weights needs scikit-learn, which cannot be imported: "
            "pip install scikit-learn"
        ) from error


def plot_usage(usage: dict[str, Any], file: Path) -> None:
    """Heat map of the use of each pattern by each class, relative to the mean over the classes."""
    weights = np.array([each["weights"] for each in usage.values()])
    ratio = np.log2(weights / weights.mean(0))
    limit = max(float(np.abs(ratio).max()), 1e-6)
    figure = new_figure(10, 1.8 + 0.22 * len(usage))
    axes = figure.add_subplot(title="Use of the patterns by detections of each class", xlabel="pattern")
    picture = axes.imshow(ratio, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_yticks(range(len(usage)), list(usage))
    figure.colorbar(picture, label="log2 (weight / mean over classes)")
    figure.savefig(file)


def plot_embedding(points: list[dict[str, Any]], file: Path) -> None:
    """The weights of the images in a plane, coloured by the class with the most detections."""
    plot_points(points, file, "Weights of the patterns, by image (t-SNE)", "most detections")


def plot_query_embedding(points: list[dict[str, Any]], file: Path) -> None:
    """The weights of the queries of detections in a plane, coloured by class."""
    plot_points(points, file, "Weights of the patterns, by query of a detection (t-SNE)", "detected class")


def plot_points(points: list[dict[str, Any]], file: Path, title: str, legend: str) -> None:
    figure = new_figure(8, 6.5)
    axes = figure.add_subplot(title=title, xticks=[], yticks=[])
    names = sorted({point["class"] for point in points}, key=lambda name: (name is None, name))
    colours = figure_colours(len(names))
    for name, colour in zip(names, colours, strict=True):
        chosen = [(point["x"], point["y"]) for point in points if point["class"] == name]
        axes.scatter(*np.array(chosen).T, s=14, color=colour, label="no detection" if name is None else name)
    columns = -(-len(names) // 25)
    axes.legend(title=legend, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=columns)
    figure.savefig(file)


def figure_colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab20" if count <= 20 else "gist_rainbow"](i / max(1, count - 1)) for i in range(count)]
