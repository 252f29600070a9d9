"""The LVIS metrics of boxes."""

import logging
import os
from collections.abc import Sequence

from detrx.coco.json_files import read_ground_truth
from detrx.coco.metrics import detection_limits, table
from detrx.coco.results import CollectedResults, with_category_ids, write_results
from detrx.coco.values import id_order
from detrx.d2.data import MetadataCatalog
from detrx.d2.evaluation import DatasetEvaluator
from detrx.d2.utils import PathManager, comm
from detrx.errors import InvalidInputError, MissingImportError

from .nms import AP_NMS, check_nms, without_duplicates

__all__ = ["LVISEvaluator", "import_lvis"]

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_KEYS = {"images": ("neg_category_ids", "not_exhaustive_category_ids"), "categories": ("frequency",)}


class LVISEvaluator(DatasetEvaluator):
    """Scores the models' ``Instances`` (``pred_boxes``, ``scores``, ``pred_classes``) by the LVIS metrics, in percent.

    LVIS is annotated in part: a detection counts only if its class was looked for in the image, and is no false one if
    the image may have more objects of the class than are annotated (https://arxiv.org/abs/1908.03195, section 2).

    The result is ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}}``: the mean over all
    classes, and over the rare, common and frequent ones; NaN where there is no ground truth. With `nms`, "AP_NMS" is
    among them, as for `COCOEvaluator`. The name, other arguments and results are those of Detectron2's evaluator, which
    does not run with numpy 1.24 or newer.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
        nms: float | None = None,
    ):
        """
        Args:
            dataset_name: a dataset whose metadata have the LVIS file as ``json_file``.
            tasks: ``("bbox",)``, or None for the same.
            distributed: collect the predictions of all ranks and score them on rank 0, rather than each its own.
            output_dir: folder for ``lvis_instances_results.json``. None: nothing is written.
            max_dets_per_image: how many of an image's detections count, by score, over all classes.
            nms: IoU of the suppression before "AP_NMS", see `without_duplicates`. None: no such figure.

        Raises:
            ImportError: the package lvis cannot be imported.
            ValueError: a task other than "bbox", a dataset without an LVIS file, `max_dets_per_image` is no positive
                number, or `nms` is not in [0, 1].
            FileNotFoundError, ValueError: its file is missing or not in LVIS' format.
        """
        if tasks is not None and set(tasks) != {"bbox"}:
            raise InvalidInputError(f"LVISEvaluator scores the task 'bbox' only, got tasks={list(tasks)}")
        detection_limits(max_dets_per_image)
        if nms is not None:
            check_nms(nms)
        import_lvis()
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            raise InvalidInputError(
                f"LVISEvaluator needs an LVIS file, but dataset {dataset_name!r} has no metadata 'json_file'"
            )
        self._ground_truth = read_ground_truth(json_file, PathManager.open)
        for section, keys in _KEYS.items():
            for position, entry in enumerate(self._ground_truth[section]):
                if missing := [key for key in keys if key not in entry]:
                    where = f"annotation file {json_file}, {section}[{position}]"
                    raise InvalidInputError(f"{where}: expected {missing[0]!r}, as LVIS has it")
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        self._nms = nms
        self._found = CollectedResults(distributed, comm)

    def reset(self) -> None:
        self._found.clear()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """``inputs`` have "image_id", ``outputs`` have "instances" in the coordinates of the annotation file."""
        self._found.add(inputs, outputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Score everything since `reset`, on rank 0; an empty dict elsewhere, or if nothing was processed."""
        found = self._found.gather()
        if found is None:
            return {}
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            ids = sorted((entry["id"] for entry in self._ground_truth["categories"]), key=id_order)
            begin_with_1 = not any(isinstance(category, str) for category in ids)
            id_map = {category: category - 1 if begin_with_1 else index for index, category in enumerate(ids)}
        results = with_category_ids(found, id_map)
        if self._output_dir:
            write_results(os.path.join(self._output_dir, "lvis_instances_results.json"), results)
        if not self._ground_truth["annotations"]:
            logger.info("The dataset has no annotations to score the detections with")
            return {}
        if not results:
            logger.warning("The model has detected nothing")
            return {"bbox": dict.fromkeys([*_METRICS, *([] if self._nms is None else [AP_NMS])], float("nan"))}

        from .lvis_scores import score_lvis

        scores = score_lvis(self._ground_truth, results, self._max_dets)
        figures = {name: scores.pop(name) for name in _METRICS}
        if self._nms is not None:
            kept = without_duplicates(results, self._nms)
            figures[AP_NMS] = score_lvis(self._ground_truth, kept, self._max_dets)["AP"]
        logger.info("Results for bbox:\n%s", table(figures))
        logger.info("Average recall:\n%s", table(scores))
        return {"bbox": figures}


def import_lvis() -> None:
    """Import the package lvis, and keep it from configuring the log of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import lvis  # noqa: F401
    except ImportError as error:
        raise MissingImportError(
            f"the LVIS metrics need the package lvis: pip install 'detrx[lvis]' (importing it failed: {error})"
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logging.getLogger("lvis").setLevel(logging.ERROR)
