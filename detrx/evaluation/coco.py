"""The COCO metrics of boxes."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detrx.coco.json_files import read_ground_truth
from detrx.coco.metrics import (
    METRICS,
    BoxScores,
    coco_api,
    detection_limits,
    distinct_names,
    score_boxes,
    table,
    table_per_class,
)
from detrx.coco.results import CollectedResults, with_category_ids, write_results
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.d2.evaluation import DatasetEvaluator
from detrx.d2.utils import PathManager, comm
from detrx.errors import InvalidInputError

from .ground_truth import ground_truth_of
from .nms import AP_NMS, check_nms, without_duplicates

__all__ = ["COCOEvaluator"]

logger = logging.getLogger(__name__)


class COCOEvaluator(DatasetEvaluator):
    """Scores the models' ``Instances`` (``pred_boxes``, ``scores``, ``pred_classes``) by the COCO metrics, in percent.

    The result is ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", ...}}``, NaN where there is no
    ground truth. Classes of the same name have their category id in the name, too. Name, arguments and results are
    those of Detectron2's evaluator; this one scores datasets with ids of any kind, and is used with and without
    Detectron2. It knows boxes only: for masks and keypoints, a config can have Detectron2's.

    With `nms`, "AP_NMS" is among them: the AP after non-maximum suppression. A detector that has learned to leave out
    duplicates gains nothing from it. The other figures, and the detections that are written, are without.
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
        nms: float | None = None,
    ):
        """
        Args:
            dataset_name: a registered dataset. If its metadata have no COCO file as ``json_file``, its dataset dicts
                are the ground truth.
            tasks: ``("bbox",)``, or None for the same.
            distributed: collect the predictions of all ranks and score them on rank 0, rather than each its own.
            output_dir: folder for ``coco_instances_results.json``. None: nothing is written.
            max_dets_per_image: how many of an image's detections of each class count, by score. Default: 100.
            use_fast_impl: count with faster-coco-eval where it is installed: the figures of pycocotools, sooner.
            nms: IoU of the suppression before "AP_NMS", see `without_duplicates`. None: no such figure.

        Raises:
            ValueError: a task other than "bbox", an unknown dataset, `max_dets_per_image` is no positive number, or
                `nms` is not in [0, 1].
            FileNotFoundError, ValueError: its file is missing or not in COCO's format.
        """
        if tasks is not None and set(tasks) != {"bbox"}:
            raise InvalidInputError(
                f"detrx.evaluation.COCOEvaluator scores the task 'bbox' only, got tasks={list(tasks)}; for masks and "
                "keypoints, let dataloader.evaluator of a .py config be Detectron2's own COCOEvaluator"
            )
        self._max_dets = 100 if max_dets_per_image is None else max_dets_per_image
        detection_limits(self._max_dets)
        if nms is not None:
            check_nms(nms)
        self._nms = nms
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is not None:
            truth = read_ground_truth(json_file, PathManager.open, labelled=False)
        elif dataset_name in DatasetCatalog:
            truth = ground_truth_of(DatasetCatalog.get(dataset_name), self._metadata)
        else:
            raise InvalidInputError(f"COCOEvaluator: dataset {dataset_name!r} is not registered")
        self._names = {entry["id"]: entry["name"] for entry in truth["categories"]}
        self._coco = coco_api(truth)
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._found = CollectedResults(distributed, comm)
        self._is_warned = tasks is not None

    def reset(self) -> None:
        self._found.clear()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """``inputs`` have "image_id", ``outputs`` have "instances" in the coordinates of the annotation file."""
        self._found.add(inputs, outputs)
        if not self._is_warned:
            fields = {name for output in outputs if "instances" in output for name in output["instances"].get_fields()}
            if others := sorted(fields & {"pred_masks", "pred_keypoints"}):
                self._is_warned = True
                logger.warning("COCOEvaluator scores boxes only; the model's %s are not scored", " and ".join(others))

    def evaluate(self, img_ids: Sequence[Any] | None = None) -> dict[str, dict[str, float]]:
        """Score everything since `reset`, on rank 0; an empty dict elsewhere, or if nothing was processed.

        Args:
            img_ids: ids of the images to score. Default: all of the annotation file.
        """
        found = self._found.gather()
        if found is None:
            return {}
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        results = with_category_ids(found, id_map)
        if self._output_dir:
            write_results(os.path.join(self._output_dir, "coco_instances_results.json"), results)
        if "annotations" not in self._coco.dataset:
            logger.info("The dataset has no annotations to score the detections with")
            return {}
        return {"bbox": self._score(results, img_ids)}

    def _score(self, results: list[dict], img_ids: Sequence[Any] | None) -> dict[str, float]:
        if not results:
            logger.warning("The model has detected nothing")
            return dict.fromkeys([*METRICS, *([] if self._nms is None else [AP_NMS])], float("nan"))
        scores = score_boxes(self._coco, results, self._max_dets, img_ids, self._use_fast_impl)
        figures = scores.average_precision()
        if self._nms is not None:
            kept = without_duplicates(results, self._nms)
            after = score_boxes(self._coco, kept, self._max_dets, img_ids, self._use_fast_impl)
            figures[AP_NMS] = after.average_precision()["AP"]
        logger.info("Results for bbox:\n%s", table(figures))
        logger.info("Average recall:\n%s", table(scores.average_recall()))

        names = self._names_of_classes(scores)
        if len(names) > 1:
            per_class = scores.per_class()
            pairs = [(name, each["AP"]) for name, each in zip(names, per_class, strict=True)]
            logger.info("AP per category:\n%s", table_per_class(pairs))
            figures.update({f"AP-{name}": value for name, value in pairs})
        return figures

    def _names_of_classes(self, scores: BoxScores) -> list[str]:
        """Those of the metadata, where it has any, else those of the file; all different."""
        classes, index_of = self._metadata.get("thing_classes"), self._metadata.get("thing_dataset_id_to_contiguous_id")
        names = dict(self._names)
        if classes is not None and index_of is not None:
            names.update((category, classes[index]) for category, index in index_of.items() if index < len(classes))
        return distinct_names([names[category] for category in scores.category_ids], scores.category_ids)
