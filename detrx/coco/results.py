"""A model's detections in COCO's result format."""

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detrx.atomic import write_atomically
from detrx.errors import InvalidInputError

from .problems import printable

__all__ = ["CollectedResults", "instances_on_host", "to_results", "with_category_ids", "write_results"]

logger = logging.getLogger(__name__)


class CollectedResults:
    """The detections of an evaluation, taken in batch by batch. Category ids are class indices, as in `to_results`.

    Args:
        distributed: put those of all processes together; otherwise each process has its own.
        comm: Detectron2's module of this name, or the embedded one.
    """

    def __init__(self, distributed: bool, comm: Any) -> None:
        self._distributed, self._comm = distributed, comm
        self._by_image: list[list[dict[str, Any]]] = []

    def clear(self) -> None:
        self._by_image = []

    def add(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in the "instances" of outputs that have them, under the "image_id" of their inputs."""
        ids = [source["image_id"] for source, output in zip(inputs, outputs, strict=True) if "instances" in output]
        found = instances_on_host([output["instances"] for output in outputs if "instances" in output])
        self._by_image += [to_results(each, image_id) for each, image_id in zip(found, ids, strict=True)]

    def gather(self) -> list[dict[str, Any]] | None:
        """All detections; None if there were no images, or if they are gathered by another process, the main one."""
        by_image = self._by_image
        if self._distributed:
            self._comm.synchronize()
            by_image = list(itertools.chain.from_iterable(self._comm.gather(by_image, dst=0)))
            if not self._comm.is_main_process():
                return None
        if not by_image:
            logger.warning("There are no predictions to evaluate")
            return None
        return list(itertools.chain.from_iterable(by_image))


def instances_on_host(instances: Sequence[Any]) -> list[Any]:
    """`Instances` of several images on the host, in one copy for all of them: `Instances.to` makes one for each field
    of each image, and waits for a GPU every time."""
    from detrx.layers import to_host  # loads the kernels, which files of detections do not need

    places, tensors = [], []
    for index, each in enumerate(instances):
        for name, value in each.get_fields().items():
            tensor = getattr(value, "tensor", value)  # of Boxes
            if hasattr(tensor, "device") and tensor.device.type != "cpu":
                places.append((index, name))
                tensors.append(tensor)
    if not tensors:
        return list(instances)
    fields = [dict(each.get_fields()) for each in instances]
    for (index, name), tensor in zip(places, to_host(tensors), strict=True):
        own = tensor.clone()  # not all of the batch is to live as long as one image's detections
        value = fields[index][name]
        fields[index][name] = type(value)(own) if hasattr(value, "tensor") else own
    return [type(each)(each.image_size, **own) for each, own in zip(instances, fields, strict=True)]


def to_results(instances: Any, image_id: Any) -> list[dict[str, Any]]:
    """Detections in COCO's result format, of `Instances` on the CPU with ``pred_boxes``, ``scores`` and
    ``pred_classes``. Their category ids are still the model's class indices, see `with_category_ids`."""
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for c, box, score in columns]


def with_category_ids(results: Iterable[dict[str, Any]], id_map: Mapping[Any, int] | None) -> list[dict[str, Any]]:
    """Detections whose category ids are class indices, with the original ids.

    Args:
        id_map: category id -> class index (``thing_dataset_id_to_contiguous_id``). None: ids are as they are.

    Raises:
        ValueError: a class index is none of the dataset's.
    """
    if id_map is None:
        return list(results)
    ids = {index: category for category, index in id_map.items()}
    converted = []
    for result in results:
        index = result["category_id"]
        if index not in ids:
            raise InvalidInputError(
                f"a prediction for image {printable(result['image_id'])} has class {index}, but the dataset has "
                f"{len(ids)} classes: the model was trained for others"
            )
        converted.append({**result, "category_id": ids[index]})
    return converted


def write_results(path: str | os.PathLike, results: list[dict[str, Any]]) -> None:
    """Write detections as JSON, replacing an earlier file at once; the folder is made."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_atomically(path, lambda file: file.write(json.dumps(results, default=_plain).encode()))
    logger.info("Wrote %d detections to %s", len(results), path)


def _plain(value: Any) -> Any:
    """A number of numpy or torch, such as the image id of a dataset of one's own, as one of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} cannot be written as JSON")
