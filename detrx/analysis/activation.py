"""Which queries become detections, how unequally, and what the patterns of pattern queries (PaQ-DETR) are used for."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from detrx.coco.results import instances_on_host
from detrx.d2.structures import Instances
from detrx.errors import InvalidInputError, MissingImportError
from detrx.modeling import DetectionTransformer, QueryContent

LEAST_IMAGES = 4
"""Fewer vectors are not embedded."""


def gini(counts: Sequence[float]) -> float:
    """Gini coefficient of counts: 0 if all are equal, (n - 1) / n if only one of n is not zero; NaN if all are zero."""
    values = np.sort(np.asarray(counts, dtype=float))
    if not values.sum():
        return float("nan")
    count = len(values)
    return float((2 * np.arange(1, count + 1) - count - 1) @ values / (count * values.sum()))


def lorenz(counts: Sequence[float]) -> np.ndarray:
    """(n + 1, 2): the share of the counts that the least active i of n queries have together, beside i / n.

    Without any count the shares are zero.
    """
    values = np.sort(np.asarray(counts, dtype=float))
    shares = np.concatenate([[0.0], values.cumsum()]) / max(values.sum(), np.finfo(float).tiny)
    return np.stack([np.linspace(0, 1, len(shares)), shares], axis=1)


class ActivationAnalysis:
    """Counts, image by image, the queries that end as confident detections.

    A query counts once in an image, for however many classes it is confident. Of a detector with pattern queries also
    the weights of the patterns are kept: their means over the confident queries of each class, and over all queries of
    each image.

    Args:
        model: in evaluation mode; it is called with one image at a time.
        class_names: by class index.
        score_threshold: least score of a confident detection.

    Raises:
        ImportError: the model has pattern queries, and there is no scikit-learn to embed their weights.
    """

    def __init__(self, model: DetectionTransformer, class_names: Sequence[str], score_threshold: float = 0.5):
        self.class_names = list(class_names)
        self.score_threshold = score_threshold
        self.counts = np.zeros(0, dtype=np.int64)
        self.images = self.detections = 0
        model.query_source.register_forward_hook(self._note_queries)
        content = getattr(model.query_source, "content", None)
        self.has_patterns = isinstance(content, QueryContent) and hasattr(content, "generator")
        self.weights: list[Tensor] = []
        self.of_images: list[np.ndarray] = []
        self.labels: list[tuple[Any, int]] = []
        self.of_class: dict[int, tuple[int, np.ndarray]] = {}
        if self.has_patterns:
            check_scikit_learn()
            content.generator.register_forward_hook(self._note_weights)

    def _note_queries(self, source: nn.Module, inputs: Any, output: Any) -> None:
        if not self.images:
            self.counts = np.zeros(output[0].content.shape[1], dtype=np.int64)

    def _note_weights(self, generator: nn.Module, inputs: Any, output: Tensor) -> None:
        self.weights.append(output)

    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Take account of an image that the model was called with."""
        (found,) = instances_on_host([instances])
        confident = found.scores >= self.score_threshold
        queries, classes = found.pred_queries[confident].numpy(), found.pred_classes[confident].numpy()
        self.counts[np.unique(queries)] += 1
        self.images += 1
        self.detections += len(queries)
        if not self.has_patterns:
            return
        weights = self.weights.pop()[0].float().cpu().numpy()
        self.weights.clear()
        for query, label in zip(queries, classes.tolist(), strict=True):
            count, total = self.of_class.get(label, (0, np.zeros(weights.shape[1])))
            self.of_class[label] = (count + 1, total + weights[query])
        self.of_images.append(weights.mean(0))
        self.labels.append((inputs.get("image_id"), int(np.bincount(classes).argmax()) if len(classes) else -1))

    @property
    def gini(self) -> float:
        """Gini coefficient of the counts; NaN without any confident detection."""
        return gini(self.counts)

    def name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def figures(self) -> dict[str, Any]:
        """What `activation.json` has.

        `counts`: in how many images each query was a confident detection; `gini` and `lorenz` of them, `gini` being
        None if there was none. Of pattern queries `patterns`: for each class the number of its detections and the mean
        weights of their queries (`usage`); for each image its id, the class with the most detections (None without
        any) and the place of its mean weights in the plane (`embedding`).
        """
        result: dict[str, Any] = {
            "images": self.images,
            "queries": len(self.counts),
            "score_threshold": self.score_threshold,
            "detections": self.detections,
            "active_queries": int((self.counts > 0).sum()),
            "gini": None if np.isnan(self.gini) else self.gini,
            "counts": self.counts.tolist(),
            "lorenz": lorenz(self.counts).tolist(),
        }
        if self.has_patterns:
            result["patterns"] = {
                "usage": {
                    self.name(label): {"detections": count, "weights": (total / count).tolist()}
                    for label, (count, total) in sorted(self.of_class.items())
                },
                "embedding": [
                    {"image_id": image_id, "class": None if label < 0 else self.name(label), "x": x, "y": y}
                    for (image_id, label), (x, y) in zip(self.labels, self.embedding(), strict=False)
                ],
            }
        return result

    def embedding(self) -> list[list[float]]:
        """Places of the images' mean weights in a plane, by t-SNE; none of fewer than `LEAST_IMAGES` different ones."""
        vectors = np.stack(self.of_images).astype(np.float64)
        if len(np.unique(vectors, axis=0)) < LEAST_IMAGES:
            return []
        from sklearn.manifold import TSNE

        # Weights of many patterns differ by little: without the scale, squared distances would be lost in rounding.
        vectors = (vectors - vectors.mean(0)) / (vectors - vectors.mean(0)).std()
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors).tolist()

    def write(self, folder: Path) -> str:
        """Write `activation.json`, `activation.png` and, of pattern queries, `patterns.png` and `embedding.png`; say in
        words what is in them.

        Raises:
            ValueError: no image was observed.
        """
        if not self.images:
            raise InvalidInputError("activation: the dataset has no images")
        figures = self.figures()
        (folder / "activation.json").write_text(json.dumps(figures, indent=1) + "\n")
        written = ["activation.json", "activation.png"]
        plot_activation(figures, folder / "activation.png")
        coefficient = "undefined" if figures["gini"] is None else f"{figures['gini']:.3f}"
        lines = [
            f"{figures['active_queries']} of {figures['queries']} queries were detections with a score of "
            f"{self.score_threshold:g} or more in {self.images} images; Gini coefficient: {coefficient}"
        ]
        if patterns := figures.get("patterns"):
            for name, plot in (("usage", plot_usage), ("embedding", plot_embedding)):
                if patterns[name]:
                    file = {"usage": "patterns.png", "embedding": "embedding.png"}[name]
                    plot(patterns[name], folder / file)
                    written.append(file)
                else:
                    why = "no confident detection" if name == "usage" else f"fewer than {LEAST_IMAGES} different images"
                    lines.append(f"no picture of the patterns' {name}: {why}")
        return "\n".join([*lines, f"figures and pictures in {folder}: {', '.join(written)}"])


def gini_table(coefficients: dict[str, dict[int, float]], folder: Path) -> str:
    """Write `gini.json` and `gini.md` with the Gini coefficients of variants and seeds; returns the Markdown table."""
    lines = ["| variant | Gini coefficient | of each seed |", "|---|---|---|"]
    for name, by_seed in coefficients.items():
        values = list(by_seed.values())
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {statistics.fmean(values):.3f}{spread} | {each} |")
    table = "\n".join(lines) + "\n"
    finite = {
        name: {seed: None if np.isnan(value) else value for seed, value in by_seed.items()}
        for name, by_seed in coefficients.items()
    }
    (folder / "gini.json").write_text(json.dumps(finite, indent=1) + "\n")
    (folder / "gini.md").write_text(table)
    return table


def check_scikit_learn() -> None:
    try:
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise MissingImportError(
            "activation: the weights of pattern queries are embedded by scikit-learn, which cannot be imported; "
            "pip install scikit-learn"
        ) from error


def plot_activation(figures: dict[str, Any], file: Path) -> None:
    """The counts of all queries by falling count, and their Lorenz curve."""
    figure = _figure(11, 4)
    bars, curve = figure.subplots(1, 2)
    counts = np.sort(figures["counts"])[::-1]
    bars.bar(np.arange(len(counts)), counts, width=1.0, color="C0")
    bars.set(title="How often each query is a detection", xlabel="queries, by falling count", ylabel="images")
    x, y = np.array(figures["lorenz"]).T
    label = "no detections" if figures["gini"] is None else f"Gini coefficient {figures['gini']:.3f}"
    curve.plot(x, y, color="C0", label=label)
    curve.plot([0, 1], [0, 1], "--", color="grey", label="all alike")
    curve.fill_between(x, y, x, color="C0", alpha=0.15)
    curve.set(title="Lorenz curve", xlabel="share of queries", ylabel="share of detections", xlim=(0, 1), ylim=(0, 1))
    curve.legend(frameon=False)
    figure.savefig(file)


def plot_usage(usage: dict[str, Any], file: Path) -> None:
    """A heat map: how much each class uses each pattern, relative to the mean over the classes."""
    weights = np.array([each["weights"] for each in usage.values()])
    ratio = np.log2(weights / weights.mean(0))
    limit = max(float(np.abs(ratio).max()), 1e-6)
    figure = _figure(10, 1.8 + 0.22 * len(usage))
    axes = figure.add_subplot(title="Use of the patterns by detections of each class", xlabel="pattern")
    picture = axes.imshow(ratio, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_yticks(range(len(usage)), list(usage))
    figure.colorbar(picture, label="log2 (weight / mean over classes)")
    figure.savefig(file)


def plot_embedding(points: list[dict[str, Any]], file: Path) -> None:
    """The weights of the images in a plane, coloured by the class with the most detections."""
    figure = _figure(8, 6.5)
    axes = figure.add_subplot(title="Weights of the patterns, by image (t-SNE)", xticks=[], yticks=[])
    names = sorted({point["class"] for point in points}, key=lambda name: (name is None, name))
    colours = figure_colours(len(names))
    for name, colour in zip(names, colours, strict=True):
        chosen = [(point["x"], point["y"]) for point in points if point["class"] == name]
        axes.scatter(*np.array(chosen).T, s=14, color=colour, label="no detection" if name is None else name)
    columns = -(-len(names) // 25)
    axes.legend(title="most detections", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=columns)
    figure.savefig(file)


def figure_colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab20" if count <= 20 else "gist_rainbow"](i / max(1, count - 1)) for i in range(count)]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure
