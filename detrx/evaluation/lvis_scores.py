"""The LVIS metrics, counted by the package lvis where there is something to count."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lvis import LVIS, LVISEval, LVISResults
from tqdm import tqdm

from detrx.coco.metrics import detection_limits
from detrx.coco.numbering import Numbering

__all__ = ["score_lvis"]


def score_lvis(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_dets_per_image: int = 300
) -> dict[str, float]:
    """The figures of LVIS for boxes, in percent.

    Args:
        ground_truth: content of an LVIS annotation file.
        results: one or more detections in COCO's result format, of known images and categories.
        max_dets_per_image: how many of an image's detections count, by score, over all classes.

    Raises:
        ValueError: `max_dets_per_image` is no positive whole number, or a detection is of an unknown image or category.

    Returns:
        AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300 and ARl@300 (300: the limit), NaN where
        there is no ground truth.
    """
    detection_limits(max_dets_per_image)
    numbering = Numbering(ground_truth["images"], ground_truth["categories"])
    annotations = _Annotations(ground_truth, numbering)
    found = LVISResults(annotations, numbering.results(results), max_dets_per_image)
    evaluation = _SparseEval(annotations, found, "bbox")
    evaluation.params.max_dets = max_dets_per_image
    evaluation.run()
    return {
        name: float(value) * 100 if value > -1 else float("nan") for name, value in evaluation.get_results().items()
    }


class _Annotations(LVIS):
    """`LVIS` of content that has been read, with ids of our own, and without the masks, which would be copied time and
    again."""

    def __init__(self, ground_truth: Mapping[str, Any], numbering: Numbering):
        self.logger = logging.getLogger("lvis")
        annotations = numbering.annotations(ground_truth["annotations"])
        for entry in annotations:
            entry.pop("segmentation", None)
        images = numbering.images(ground_truth["images"])
        for image in images:
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                image[key] = numbering.category_numbers(image[key])
        categories = numbering.categories(ground_truth["categories"])
        self.dataset = {**ground_truth, "images": images, "annotations": annotations, "categories": categories}
        self._create_index()


class _SparseEval(LVISEval):
    """`LVISEval`, which looks only at pairs of image and category with boxes: of 20k images and 1203 categories few.

    `accumulate` is written anew, since that of lvis 0.5.3 needs `np.float`, which numpy 1.24 has removed.
    """

    def evaluate(self) -> None:
        self._prepare()
        pairs = sorted(self._gts.keys() | self._dts.keys())  # by image, as ties of scores are broken
        self.ious = {pair: self.compute_iou(*pair) for pair in pairs}
        self.eval_imgs = defaultdict(list)
        for image, category in tqdm(pairs, desc="LVIS evaluation", disable=None, leave=False):
            for area, limits in enumerate(self.params.area_rng):
                self.eval_imgs[category, area].append(self.evaluate_img(image, category, limits))

    def accumulate(self) -> None:
        params = self.params
        shape = len(params.iou_thrs), len(params.rec_thrs), len(params.cat_ids), len(params.area_rng)
        precision = np.full(shape, -1.0)
        recall = np.full((shape[0], *shape[2:]), -1.0)
        positions = {category: k for k, category in enumerate(params.cat_ids)}
        for (category, area), images in self.eval_imgs.items():
            k = positions[category]
            objects = sum(np.count_nonzero(image["gt_ignore"] == 0) for image in images)
            if not objects:
                continue
            order = np.argsort(-np.concatenate([image["dt_scores"] for image in images]), kind="stable")
            matched = np.concatenate([image["dt_matches"] for image in images], axis=1)[:, order] != 0
            counts = ~np.concatenate([image["dt_ignore"] for image in images], axis=1)[:, order]
            right = np.cumsum(matched & counts, axis=1)
            wrong = np.cumsum(~matched & counts, axis=1)
            recalls = right / objects
            precisions = right / (right + wrong + np.spacing(1))
            precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
            recall[:, k, area] = recalls[:, -1] if len(order) else 0
            for threshold in range(shape[0]):
                reached = np.searchsorted(recalls[threshold], params.rec_thrs, side="left")
                padded = np.append(precisions[threshold], 0.0)  # recalls that are not reached
                precision[threshold, :, k, area] = padded[reached]
        self.eval = {"params": params, "precision": precision, "recall": recall}
