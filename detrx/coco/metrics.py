"""The COCO metrics of boxes: from annotations and a list of detections to figures and tables."""

import contextlib
import importlib.util
import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detrx.errors import InvalidInputError

from .numbering import Numbering
from .problems import printable

__all__ = [
    "METRICS",
    "BoxScores",
    "coco_api",
    "detection_limits",
    "distinct_names",
    "score_boxes",
    "table",
    "table_per_class",
]

METRICS = {
    "AP": (None, 0),
    "AP50": (0.5, 0),
    "AP75": (0.75, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}
"""Name -> (IoU threshold or None for the mean over all, index of the area range)."""
_AREAS = ("s", "m", "l")


@dataclass(frozen=True)
class BoxScores:
    """What `COCOeval.accumulate` gives: 10 IoU thresholds T, 101 recalls R, K classes, 4 area ranges A (all, small,
    medium, large) and M limits of detections per image. -1 where there is no ground truth.

    Attributes:
        precision: (T, R, K, A, M).
        recall: the largest recall, (T, K, A, M).
        scores: score of the detection that reaches each recall, (T, R, K, A, M).
        category_ids: of the K classes, as in the file, in the order of `id_order`.
        iou_thresholds: (T,).
        recall_thresholds: (R,).
        max_dets: (M,), the limits, see `detection_limits`.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    category_ids: list[Any]
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    max_dets: list[int]

    def average_precision(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm and APl in percent, over all classes that have ground truth; NaN if none has."""
        return {name: self._precision(slice(None), *where) for name, where in METRICS.items()}

    def average_recall(self) -> dict[str, float]:
        """AR with at most so many detections per image and class (AR1, AR10, AR100, or up to the number asked for), and
        ARs, ARm and ARl, in percent."""
        by_limit = {f"AR{limit}": mean_percent(self.recall[:, :, 0, i]) for i, limit in enumerate(self.max_dets)}
        by_area = {f"AR{area}": mean_percent(self.recall[:, :, i, -1]) for i, area in enumerate(_AREAS, start=1)}
        return {**by_limit, **by_area}

    def per_class(self) -> list[dict[str, float]]:
        """`average_precision` of every class, in the order of `category_ids`."""
        classes = range(len(self.category_ids))
        return [{name: self._precision(k, *where) for name, where in METRICS.items()} for k in classes]

    def _precision(self, classes: slice | int, iou: float | None, area: int) -> float:
        thresholds = slice(None) if iou is None else np.flatnonzero(self.iou_thresholds == iou)
        return mean_percent(self.precision[thresholds][:, :, classes, area, -1])


def mean_percent(values: np.ndarray) -> float:
    """Mean of the entries that exist (-1 marks the others), times 100; NaN if none does."""
    values = values[values > -1]
    return float(np.mean(values) * 100) if values.size else float("nan")


class NumberedCOCO(COCO):
    """The object that pycocotools works on, with ids of our own.

    Attributes:
        numbering: between these and the ids of the file.
    """

    def __init__(self, numbering: Numbering, content: Mapping) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__()
            self.numbering = numbering
            self.dataset = dict(content)
            if "annotations" in content:
                self.createIndex()


def coco_api(ground_truth: Mapping) -> NumberedCOCO:
    """The content of a COCO file, which is not changed, for `score_boxes`.

    Its images, categories and annotations have ids of our own, whatever ids the file has. Annotations without "area"
    get that of their box, those without "iscrowd" are no crowds; those of images that are not listed are left out.
    """
    numbering = Numbering(ground_truth["images"], ground_truth["categories"])
    content = {
        "images": numbering.images(ground_truth["images"]),
        "categories": numbering.categories(ground_truth["categories"]),
    }
    if "annotations" in ground_truth:
        content["annotations"] = numbering.annotations(ground_truth["annotations"])
    return NumberedCOCO(numbering, content)


def detection_limits(max_dets_per_image: int) -> list[int]:
    """The numbers of detections per image and class at which recall is given, the number asked for last: 1, 10 and 100
    by default, as COCO has it, and no more than asked for.

    Raises:
        ValueError: it is no positive whole number.
    """
    if not isinstance(max_dets_per_image, int) or isinstance(max_dets_per_image, bool) or max_dets_per_image < 1:
        raise InvalidInputError(f"max_dets_per_image must be a positive whole number, got {max_dets_per_image!r}")
    return [*(limit for limit in (1, 10) if limit < max_dets_per_image), max_dets_per_image]


def score_boxes(
    ground_truth: COCO,
    results: Sequence[Mapping],
    max_dets_per_image: int = 100,
    image_ids: Sequence[Any] | None = None,
    use_fast_impl: bool = True,
) -> BoxScores:
    """Compare detections with annotations as the COCO challenge does.

    Args:
        ground_truth: see `coco_api`.
        results: detections in COCO's result format, ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``,
            with the ids of the file. They are not changed.
        max_dets_per_image: how many of an image's detections of each class count, by score.
        image_ids: images to score. Default: all.
        use_fast_impl: count with faster-coco-eval where it is installed: the same figures, sooner. Otherwise, and where
            it is not, with pycocotools.

    Raises:
        ValueError: a detection is of an unknown image or category, or `max_dets_per_image` is no positive number.
    """
    limits = detection_limits(max_dets_per_image)
    if not isinstance(ground_truth, NumberedCOCO):
        ground_truth = coco_api(ground_truth.dataset)
    numbering = ground_truth.numbering
    found = NumberedCOCO(numbering, {**ground_truth.dataset, "annotations": numbering.results(results)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _implementation(use_fast_impl)(ground_truth, found, "bbox")
        evaluation.params.maxDets = limits
        if image_ids is not None:
            evaluation.params.imgIds = numbering.image_numbers(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    params, figures = evaluation.params, evaluation.eval
    return BoxScores(
        figures["precision"],
        figures["recall"],
        figures["scores"],
        numbering.category_ids,
        np.asarray(params.iouThrs),
        np.asarray(params.recThrs),
        limits,
    )


def _implementation(use_fast_impl: bool) -> type:
    if use_fast_impl and importlib.util.find_spec("faster_coco_eval") is not None:
        from faster_coco_eval import COCOeval_faster

        return COCOeval_faster
    return COCOeval


def distinct_names(names: Sequence[str], category_ids: Sequence[Any]) -> list[str]:
    """The names of the classes, with the category id behind those that occur more than once."""
    counts, taken, distinct = Counter(names), set(names), []
    for name, category_id in zip(names, category_ids, strict=True):
        if counts[name] > 1:
            while name in taken:
                name = f"{name} ({printable(category_id)})"
            taken.add(name)
        distinct.append(name)
    return distinct


def table(metrics: Mapping[str, float]) -> str:
    """Metrics side by side, as Detectron2 prints them."""
    return tabulate([metrics], "keys", "pipe", ".3f", stralign="center", numalign="center")


def table_per_class(values: Sequence[tuple[str, float]], metric: str = "AP", pairs_per_row: int = 3) -> str:
    """Names of classes and their figures, several pairs side by side, as Detectron2 prints them."""
    rows = [
        list(itertools.chain.from_iterable(values[i : i + pairs_per_row])) for i in range(0, len(values), pairs_per_row)
    ]
    headers = ["category", metric] * min(pairs_per_row, len(values))
    return tabulate(rows, headers, "pipe", ".3f", numalign="left")
