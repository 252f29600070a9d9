"""Detections, read from the file of an evaluation or made by the trained model, and the dataset they are of."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detrx.coco.results import instances_on_host, to_results, with_category_ids
from detrx.coco.values import id_order
from detrx.d2.config import instantiate
from detrx.d2.data import MetadataCatalog
from detrx.data import get_detection_dataset_dicts
from detrx.data.bad_files import UNREADABLE, BadFiles
from detrx.engine.trained import load_model
from detrx.errors import user_message
from detrx.evaluation import class_names, read_ground_truth, read_results
from detrx.evaluation.ground_truth import ground_truth_of
from detrx.modeling import DetectionTransformer

from .query_watch import QueryWatch


@dataclass(frozen=True)
class Dataset:
    """A dataset with its ground truth.

    Attributes:
        name: registered name.
        records: dataset dicts by image id.
        ground_truth: content of a COCO annotation file, for these images.
        max_dets_per_image: how many of an image's detections of each class count.
    """

    name: str
    records: dict[Any, dict[str, Any]]
    ground_truth: dict[str, Any]
    max_dets_per_image: int = 100

    @property
    def category_ids(self) -> list[Any]:
        """By class index."""
        return sorted((each["id"] for each in self.ground_truth["categories"]), key=id_order)

    @property
    def class_names(self) -> list[str]:
        """By class index."""
        return class_names(self.ground_truth)

    def first(self, count: int) -> "Dataset":
        """The dataset of its first `count` images."""
        return self.of(list(self.records)[:count])

    def of(self, image_ids: Iterable[Any]) -> "Dataset":
        """The dataset of these images."""
        kept = {image_id: self.records[image_id] for image_id in image_ids}
        truth = dict(self.ground_truth)
        truth["images"] = [each for each in truth["images"] if each["id"] in kept]
        truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in kept]
        return replace(self, records=kept, ground_truth=truth)

    def with_classes(self, count: int) -> "Dataset":
        """The dataset with at least `count` classes: those beyond its own are called by their number."""
        truth, ids = dict(self.ground_truth), self.category_ids
        last = ids[-1] if ids else -1
        added = [
            # an id that comes after all others in the order of `id_order`
            {"id": f"{last} {index:09d}" if isinstance(last, str) else last + place, "name": str(index)}
            for place, index in enumerate(range(len(ids), count), start=1)
        ]
        truth["categories"] = [*truth["categories"], *added]
        return replace(self, ground_truth=truth)


@dataclass(frozen=True)
class Detections:
    """Detections in COCO's result format in the images of a dataset; `source` names their origin in words."""

    dataset: Dataset
    results: list[dict[str, Any]]
    source: str


@dataclass(frozen=True)
class Absent:
    """Why a part of the report is missing, and the command that adds it, if there is one."""

    why: str
    command: str = ""


def load_dataset(name: str, max_dets_per_image: int = 100) -> Dataset:
    """Load a registered dataset with its annotations.

    Raises:
        ValueError, FileNotFoundError: it is not registered, its annotations are missing or faulty.
    """
    records = {each["image_id"]: each for each in get_detection_dataset_dicts(name, filter_empty=False)}
    json_file = MetadataCatalog.get(name).get("json_file")
    truth = read_ground_truth(json_file) if json_file else ground_truth_of(records.values(), MetadataCatalog.get(name))
    return Dataset(name, records, truth, max_dets_per_image)


def read_detections(file: Path, dataset: Dataset) -> Detections:
    """Read the detections that an evaluation wrote.

    Raises:
        ValueError: the file is damaged, or of another dataset; names it.
    """
    return Detections(dataset, read_results(file, dataset.ground_truth), f"of the evaluation, {file.name}")


def run_model(
    cfg: Any, weights: Path, device: str, dataset: Dataset, threshold: float, bad: BadFiles
) -> tuple[Detections, dict[str, Any] | Absent]:
    """Run a checkpoint on all images of a dataset.

    Args:
        cfg: the config that the model was trained with.
        weights: a checkpoint; its averaged weights are used, if it has any.
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.
        dataset: its images.
        threshold: least score at which a query counts as active.
        bad: gets the images that cannot be read, of which neither detections nor ground truth count.

    Returns:
        The detections, and the figures on queries, see `QueryWatch.figures`.

    Raises:
        CheckpointError, FileNotFoundError: the checkpoint is not there or of another model.
        ValueError: no image can be read.
    """
    model = load_model(cfg, str(weights), device)
    mapper = instantiate(cfg.dataloader.test.mapper)
    watch: QueryWatch | Absent = Absent("The model is not a DetectionTransformer of detrx, so it has no queries.")
    if isinstance(model, DetectionTransformer):
        try:
            watch = QueryWatch(model, cfg.model, dataset.class_names, threshold)
        except ImportError as error:
            if (message := user_message(error)) is None:
                raise
            watch = Absent(message)
    results: list[dict[str, Any]] = []
    seen: list[Any] = []
    with torch.no_grad():
        for image_id, record in tqdm(dataset.records.items(), desc="detecting", unit="img"):
            try:
                inputs = mapper(record)
            except UNREADABLE as error:
                bad.add(error)
                continue
            (found,) = instances_on_host([output["instances"] for output in model([inputs])])
            results += to_results(found, image_id)
            seen.append(image_id)
            if isinstance(watch, QueryWatch):
                watch.observe(inputs, found)
    if not seen:
        bad.raise_any()
    dataset = dataset.of(seen).with_classes(1 + max((each["category_id"] for each in results), default=-1))
    index_of = {category_id: index for index, category_id in enumerate(dataset.category_ids)}
    results = with_category_ids(results, index_of)
    figures = watch if isinstance(watch, Absent) else watch.figures()
    return Detections(dataset, results, f"of {weights.name} in {len(dataset.records)} images"), figures
