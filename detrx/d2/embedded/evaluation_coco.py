"""Average precision of boxes by the COCO metrics."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detrx.d2.embedded import comm
from detrx.d2.embedded.data_catalog import MetadataCatalog
from detrx.d2.embedded.data_coco import read_coco_json
from detrx.d2.embedded.evaluation import DatasetEvaluator
from detrx.d2.embedded.file_io import PathManager
from detrx.d2.embedded.structures import BoxMode, Instances

logger = logging.getLogger(__name__)

_METRICS = {"AP": (None, 0), "AP50": (0.5, 0), "AP75": (0.75, 0), "APs": (None, 1), "APm": (None, 2), "APl": (None, 3)}
"""Name -> (IoU threshold or None for the mean over all, index of the area range)."""


class COCOEvaluator(DatasetEvaluator):
    """Scores ``pred_boxes``, ``scores`` and ``pred_classes`` of the models' ``Instances``, in percent.

    The result is ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", ...}}``, NaN where there is no
    ground truth.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
    ):
        """
        Args:
            dataset_name: a dataset registered with a COCO file.
            tasks: ``("bbox",)``, or None for the same.
            distributed: collect the predictions of all ranks and score them on rank 0, rather than each its own.
            output_dir: folder for ``coco_instances_results.json``. None: nothing is written.
            max_dets_per_image: how many of an image's detections count, by score. Default: 100.
            use_fast_impl: accepted because Detectron2 has it; pycocotools is used either way.

        Raises:
            ValueError: a task other than "bbox", or a dataset without a COCO file.
            FileNotFoundError, ValueError: its file is missing or not in COCO's format.
        """
        if tasks is not None and set(tasks) != {"bbox"}:
            raise ValueError(f"Without Detectron2, COCOEvaluator scores the task 'bbox' only, got tasks={list(tasks)}")
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            raise ValueError(
                f"COCOEvaluator needs a COCO file, but dataset {dataset_name!r} has no metadata 'json_file'"
            )
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        self._predictions: list[list[dict]] = []
        self._coco = COCO()
        self._coco.dataset = read_coco_json(json_file)
        if "annotations" in self._coco.dataset:
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco.createIndex()

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """``inputs`` have "image_id", ``outputs`` have "instances" in the coordinates of the annotation file."""
        for source, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                self._predictions.append(_to_coco(output["instances"].to("cpu"), source["image_id"]))

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
        """Score everything since `reset`, on rank 0; an empty dict elsewhere, or if nothing was processed.

        Args:
            img_ids: ids of the images to score. Default: all of the annotation file.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("COCOEvaluator has received no predictions")
            return {}

        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        ids = None if id_map is None else sorted(id_map, key=id_map.get)
        results = []
        for result in itertools.chain.from_iterable(predictions):
            category = result["category_id"]
            if ids is not None:
                assert 0 <= category < len(ids), (
                    f"A prediction for image {result['image_id']} has class {category}, the dataset has {len(ids)}"
                )
                category = ids[category]
            results.append({**result, "category_id": category})
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with PathManager.open(path, "w") as f:
                f.write(json.dumps(results))
            logger.info("Wrote %d detections to %s", len(results), path)
        if "annotations" not in self._coco.dataset:
            logger.info("The dataset has no annotations to score the detections with")
            return {}
        return {"bbox": self._score(results, img_ids)}

    def _score(self, results: list[dict], img_ids: list[int] | None) -> dict[str, float]:
        if not results:
            logger.warning("The model has detected nothing")
            return dict.fromkeys(_METRICS, float("nan"))
        evaluation = COCOeval(self._coco, self._coco.loadRes(results), "bbox")
        evaluation.params.maxDets = self._max_dets
        if img_ids is not None:
            evaluation.params.imgIds = img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        if self._max_dets[-1] == 100:  # it can print no other limit
            evaluation.summarize()

        precision = evaluation.eval["precision"]  # (IoU threshold, recall, category, area range, detections per image)
        scores = {}
        for name, (iou, area) in _METRICS.items():
            thresholds = slice(None) if iou is None else np.where(evaluation.params.iouThrs == iou)[0]
            scores[name] = _mean_percent(precision[thresholds, :, :, area, -1])
        logger.info("Results for bbox:\n%s", tabulate([scores], "keys", "pipe", ".3f", stralign="center"))

        classes = self._metadata.get("thing_classes")
        if classes is not None and len(classes) > 1:
            assert len(classes) == precision.shape[2], f"{len(classes)} classes, {precision.shape[2]} scored categories"
            per_class = [(name, _mean_percent(precision[:, :, k, 0, -1])) for k, name in enumerate(classes)]
            logger.info("AP per category:\n%s", _in_columns(per_class))
            scores.update({f"AP-{name}": value for name, value in per_class})
        return scores


def _mean_percent(precision: np.ndarray) -> float:
    """Mean of the entries that exist (-1 marks the others), times 100; NaN if none does."""
    precision = precision[precision > -1]
    return float(np.mean(precision) * 100) if precision.size else float("nan")


def _in_columns(pairs: list[tuple[str, float]], pairs_per_row: int = 3) -> str:
    """A table of names and values, several pairs side by side."""
    rows = [itertools.chain.from_iterable(pairs[i : i + pairs_per_row]) for i in range(0, len(pairs), pairs_per_row)]
    headers = ["category", "AP"] * min(pairs_per_row, len(pairs))
    return tabulate([list(row) for row in rows], headers, "pipe", ".3f", numalign="left")


def _to_coco(instances: Instances, image_id: int) -> list[dict]:
    """Detections in COCO's result format; their category ids are still the model's class indices."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    columns = zip(instances.pred_classes.tolist(), boxes, instances.scores.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for c, box, score in columns]
