"""The COCO metrics of boxes: from annotations and a list of detections to figures and tables."""

import contextlib
import copy
import importlib.util
import io
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

__all__ = ["METRICS", "BoxScores", "coco_api", "score_boxes", "table", "table_per_class"]

logger = logging.getLogger(__name__)

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
    medium, large) and 3 limits of detections per image M. -1 where there is no ground truth.

    Attributes:
        precision: (T, R, K, A, M).
        recall: the largest recall, (T, K, A, M).
        scores: score of the detection that reaches each recall, (T, R, K, A, M).
        category_ids: of the K classes, rising.
        iou_thresholds: (T,).
        recall_thresholds: (R,).
        max_dets: (M,), the limits.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    category_ids: list[int]
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    max_dets: list[int]

    def average_precision(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm and APl in percent, over all classes that have ground truth; NaN if none has."""
        return {name: self._precision(slice(None), *where) for name, where in METRICS.items()}

    def average_recall(self) -> dict[str, float]:
        """AR with at most so many detections per image and class (AR1, AR10, AR100), ARs, ARm and ARl in percent."""
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


def coco_api(ground_truth: Mapping) -> COCO:
    """The content of a COCO file, which is not changed, as the object that pycocotools works on.

    Annotations without "area" get that of their box, those without "iscrowd" are no crowds.
    """
    api = COCO()
    api.dataset = dict(ground_truth)
    if "annotations" in ground_truth:
        api.dataset["annotations"] = [_complete(entry) for entry in ground_truth["annotations"]]
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        if 0 in api.anns:
            logger.warning("pycocotools never counts the annotation of id 0 as found: ids should begin with 1")
    return api


def _complete(annotation: Mapping) -> dict:
    annotation = {"iscrowd": 0, **annotation}
    if "area" not in annotation:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return annotation


def score_boxes(
    ground_truth: COCO,
    results: Sequence[Mapping],
    max_dets_per_image: int = 100,
    image_ids: Sequence[int] | None = None,
    use_fast_impl: bool = True,
) -> BoxScores:
    """Compare detections with annotations as the COCO challenge does.

    Args:
        ground_truth: see `coco_api`.
        results: detections in COCO's result format, ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``, of
            known images. They are not changed.
        max_dets_per_image: how many of an image's detections of each class count, by score.
        image_ids: images to score. Default: all.
        use_fast_impl: count with faster-coco-eval where it is installed: the same figures, sooner. Otherwise, and where
            it is not, with pycocotools.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _implementation(use_fast_impl)(ground_truth, _load(ground_truth, results), "bbox")
        evaluation.params.maxDets = [1, 10, max_dets_per_image]
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    params, figures = evaluation.params, evaluation.eval
    return BoxScores(
        figures["precision"],
        figures["recall"],
        figures["scores"],
        [int(i) for i in params.catIds],
        np.asarray(params.iouThrs),
        np.asarray(params.recThrs),
        list(params.maxDets),
    )


def _load(ground_truth: COCO, results: Sequence[Mapping]) -> COCO:
    if results:
        return ground_truth.loadRes([copy.copy(result) for result in results])
    empty = COCO()  # which loadRes cannot make
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _implementation(use_fast_impl: bool) -> type:
    if use_fast_impl and importlib.util.find_spec("faster_coco_eval") is not None:
        from faster_coco_eval import COCOeval_faster

        return COCOeval_faster
    return COCOeval


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
