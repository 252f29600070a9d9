"""Average precision of boxes by the COCO metrics."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from detrx.coco.json_files import read_annotations
from detrx.coco.metrics import METRICS, coco_api, score_boxes, table, table_per_class
from detrx.coco.results import CollectedResults, with_category_ids, write_results
from detrx.d2.embedded import comm
from detrx.d2.embedded.data_catalog import MetadataCatalog
from detrx.d2.embedded.evaluation import DatasetEvaluator
from detrx.d2.embedded.file_io import PathManager
from detrx.errors import InvalidInputError

logger = logging.getLogger(__name__)


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
            use_fast_impl: count with faster-coco-eval where it is installed: the figures of pycocotools, sooner.

        Raises:
            ValueError: a task other than "bbox", or a dataset without a COCO file.
            FileNotFoundError, ValueError: its file is missing or not in COCO's format.
        """
        if tasks is not None and set(tasks) != {"bbox"}:
            raise InvalidInputError(
                f"Without Detectron2, COCOEvaluator scores the task 'bbox' only, got tasks={list(tasks)}"
            )
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            raise InvalidInputError(
                f"COCOEvaluator needs a COCO file, but dataset {dataset_name!r} has no metadata 'json_file'"
            )
        self._output_dir = output_dir
        self._max_dets = 100 if max_dets_per_image is None else max_dets_per_image
        self._use_fast_impl = use_fast_impl
        self._found = CollectedResults(distributed, comm)
        self._coco = coco_api(read_annotations(json_file, ("images", "categories"), PathManager.open))

    def reset(self) -> None:
        self._found.clear()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """``inputs`` have "image_id", ``outputs`` have "instances" in the coordinates of the annotation file."""
        self._found.add(inputs, outputs)

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
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

    def _score(self, results: list[dict], img_ids: list[int] | None) -> dict[str, float]:
        if not results:
            logger.warning("The model has detected nothing")
            return dict.fromkeys(METRICS, float("nan"))
        scores = score_boxes(self._coco, results, self._max_dets, img_ids, self._use_fast_impl)
        figures = scores.average_precision()
        logger.info("Results for bbox:\n%s", table(figures))
        logger.info("Average recall:\n%s", table(scores.average_recall()))

        classes = self._metadata.get("thing_classes")
        if classes is not None and len(classes) > 1:
            per_class = scores.per_class()
            assert len(classes) == len(per_class), f"{len(classes)} classes, {len(per_class)} scored categories"
            pairs = [(name, each["AP"]) for name, each in zip(classes, per_class, strict=True)]
            logger.info("AP per category:\n%s", table_per_class(pairs))
            figures.update({f"AP-{name}": value for name, value in pairs})
        return figures
