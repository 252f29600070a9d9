"""Everything that is wrong with a dataset, found before a training: ids, boxes, image files; and its statistics."""

from __future__ import annotations

import dataclasses
import numbers
import os
import warnings
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from detrx.coco.annotations import LARGEST_SIDE, number_classes, parse_coco
from detrx.coco.files import read_json
from detrx.coco.problems import Findings, Problem, printable
from detrx.coco.records import check_classes
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.d2.structures import BoxMode
from detrx.d2.utils import PathManager
from detrx.errors import InvalidInputError

from ..datasets.custom import without_files
from ..datasets.registered import check_registered
from ..images import open_picture
from .boxes import BoxTable, check_boxes, check_boxes_closely

__all__ = ["CheckedDataset", "check_coco_file", "check_config", "check_dataset"]

_SMALL, _LARGE = 32**2, 96**2  # COCO's limits, in pixels of area


@dataclasses.dataclass
class CheckedDataset:
    """What was found out about one dataset.

    Attributes:
        name: of the dataset, or the path of its annotation file.
        json_file: its annotation file, or None.
        image_root: folder of its images, or None.
        classes: class names, by `category_id` of the records.
        records: its usable dataset dicts.
        findings: what is wrong.
        statistics: see `_statistics`.
    """

    name: str
    json_file: str | None
    image_root: str | None
    classes: list[str]
    records: list[dict[str, Any]]
    findings: Findings
    statistics: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all but the records."""
        return {
            "name": self.name,
            "annotations": self.json_file,
            "images": self.image_root,
            "errors": self.findings.count("error"),
            "warnings": self.findings.count("warning"),
            "findings": self.findings.entries(),
            "statistics": self.statistics,
        }


def check_coco_file(
    json_file: str, image_root: str, decode: bool = True, workers: int = 1, max_examples: int = 3
) -> CheckedDataset:
    """Check a COCO annotation file and its images; whatever is wrong with it is found, and not raised.

    Args:
        image_root: folder that its file names are relative to.
        decode: decode every image file; otherwise look only whether it exists.
        workers: threads for that.
        max_examples: of each kind of problem.
    """
    findings = Findings(max_examples)
    records, classes = _parse(json_file, image_root, None, findings)
    return _check(json_file, json_file, image_root, records, classes, findings, decode, workers)


def check_dataset(
    name: str, role: str | None = None, decode: bool = True, workers: int = 1, max_examples: int = 3
) -> CheckedDataset:
    """Check a registered dataset of any kind: its COCO file, if it has one, and its dataset dicts.

    Args:
        role: "train" or "test", if it is known: only a test set can do without boxes.

    Raises:
        ValueError: there is no such dataset.
    """
    check_registered([name])
    findings = Findings(max_examples)
    parsed: list[dict[str, Any]] = []
    json_file = image_root = None
    try:
        metadata = MetadataCatalog.get(name)
        json_file, image_root = (
            metadata.get(key) and os.fspath(metadata.get(key)) for key in ("json_file", "image_root")
        )
        if json_file and metadata.get("evaluator_type") == "coco":
            parsed, classes = _parse(json_file, image_root or "", name, findings)
        records = _usable(DatasetCatalog.get(name), findings)
        classes = list(metadata.get("thing_classes") or [])
    except Exception as error:  # whatever the reader of the dataset raises
        if not findings.count("error"):
            findings.add(Problem.FILE, f"it cannot be loaded: {printable(str(error) or type(error).__name__)}")
        records, classes = parsed, classes if parsed else []
    if [record["file_name"] for record in parsed] == [record["file_name"] for record in records]:
        records = parsed  # these have annotation ids
    _check_labels(records, classes, findings)
    return _check(name, json_file, image_root, records, classes, findings, decode, workers, role)


def check_config(cfg: DictConfig, decode: bool = True, workers: int = 1, max_examples: int = 3) -> list[CheckedDataset]:
    """Check each dataset that a config trains or tests with, and whether they fit to each other and to the model.

    Raises:
        ValueError: the config names no dataset in `dataloader.train.dataset.names` or its counterpart for the test, or
            one that is not registered.
    """
    checked: dict[str, CheckedDataset] = {}
    roles: dict[str, list[str]] = {"train": [], "test": []}
    for role, names_of_role in roles.items():
        names = OmegaConf.select(cfg, f"dataloader.{role}.dataset.names", default=None) or []
        names = [names] if isinstance(names, str) else list(names)
        names_of_role += [name for name in names if not without_files(name)]
        for name in names_of_role:
            if name not in checked:
                checked[name] = check_dataset(name, role, decode, workers, max_examples)
    if not checked:
        raise InvalidInputError(
            "the config has no dataset names in dataloader.train.dataset and dataloader.test.dataset"
        )

    num_classes = OmegaConf.select(cfg, "model.decoder.heads.num_classes", default=None)
    for dataset in checked.values():
        if num_classes is not None and dataset.classes and len(dataset.classes) != num_classes:
            why = f"{len(dataset.classes)} classes, but model.decoder.heads.num_classes is {num_classes}"
            dataset.findings.add(Problem.CLASS_COUNT, why)
    for test in (checked[name] for name in roles["test"] if name not in roles["train"]):
        for train in (checked[name] for name in roles["train"]):
            if test.classes and train.classes and test.classes != train.classes:
                why = f"those of {train.name} are {printable(train.classes)}, here they are {printable(test.classes)}"
                test.findings.add(Problem.TRAIN_TEST_CLASSES, why)
            train_files = {os.path.realpath(record["file_name"]) for record in train.records}
            for record in test.records:
                if os.path.realpath(record["file_name"]) in train_files:
                    test.findings.add(Problem.IN_TRAIN_AND_TEST, f"{printable(record['file_name'])} ({train.name})")
    return list(checked.values())


def _parse(
    json_file: str, image_root: str, name: str | None, findings: Findings
) -> tuple[list[dict[str, Any]], list[str]]:
    """Records with annotation ids and contiguous classes, and the names of these."""
    try:
        content = read_json(json_file, open_file=PathManager.open)
    except (OSError, InvalidInputError) as error:
        findings.add(Problem.FILE, str(error))
        return [], []
    records, categories = parse_coco(content, image_root, BoxMode.XYWH_ABS, findings, with_ids=True)
    classes = list(categories.values())
    if name is not None:
        check_classes(classes, MetadataCatalog.get(name), findings)
    number_classes(records, categories)
    return records, classes


def _usable(records: Iterable[Any], findings: Findings) -> list[dict[str, Any]]:
    """Dataset dicts that are as Detectron2 defines them; others are found."""
    usable = []
    for position, record in enumerate(records):
        problem = _problem_of(record)
        if problem is not None:
            findings.add(Problem.ENTRY, f"dataset dict {position} {problem}")
            continue
        annotations = []
        for annotation in record.get("annotations", []):
            problem = _problem_of_annotation(annotation)
            if problem is None:
                annotations.append(annotation)
            else:
                name = printable(os.fspath(record["file_name"]))
                findings.add(Problem.ENTRY, f"dataset dict {position} ({name}) has an annotation that {problem}")
        usable.append({**record, "file_name": os.fspath(record["file_name"]), "annotations": annotations})
    return usable


def _problem_of(record: Any) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get("file_name"), (str, os.PathLike)):
        return f"has no file_name: {printable(record)}"
    if not isinstance(record.get("annotations", []), (list, tuple)):
        return f"has annotations {printable(record['annotations'])}, expected a list"
    for side in ("width", "height"):
        if side in record and not (isinstance(record[side], numbers.Real) and 0 < record[side] <= LARGEST_SIDE):
            return f"has {side} {printable(record[side])}, expected a positive number"
    return None


def _problem_of_annotation(annotation: Any) -> str | None:
    if not isinstance(annotation, dict):
        return f"is no dict: {printable(annotation)}"
    if missing := [key for key in ("bbox", "bbox_mode", "category_id") if key not in annotation]:
        return f"has no {missing[0]}"
    if not (isinstance(annotation["category_id"], numbers.Integral) and 0 <= annotation["category_id"] < 2**31):
        return f"has category_id {printable(annotation['category_id'])}, expected 0, 1, ..."
    if annotation["bbox_mode"] not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return f"has bbox_mode {printable(annotation['bbox_mode'])}, expected XYXY_ABS or XYWH_ABS"
    return None


def _check_labels(records: list[dict[str, Any]], classes: list[str], findings: Findings) -> None:
    for record in records if classes else ():
        for annotation in record["annotations"]:
            if annotation["category_id"] not in range(len(classes)):
                what = f"image {printable(record['file_name'])} has category_id {printable(annotation['category_id'])}"
                findings.add(Problem.UNKNOWN_CATEGORY, f"{what}, expected 0 to {len(classes) - 1}")
        record["annotations"] = [a for a in record["annotations"] if a["category_id"] in range(len(classes))]


def _check(
    name: str,
    json_file: str | None,
    image_root: str | None,
    records: list[dict[str, Any]],
    classes: list[str],
    findings: Findings,
    decode: bool,
    workers: int,
    role: str | None = None,
) -> CheckedDataset:
    table = check_boxes(records, findings)
    check_boxes_closely(table, records, findings)
    if records and role != "test" and not ((table.boxes[:, 2:] > 0).all(1) & ~table.crowd).any():
        findings.add(Problem.NO_BOXES, f"{len(records)} images, {len(table.boxes)} boxes")
    _check_images(records, findings, decode, workers)
    statistics = _statistics(table, records, classes)
    return CheckedDataset(name, json_file, image_root, classes, records, findings, statistics)


def _check_images(records: list[dict[str, Any]], findings: Findings, decode: bool, workers: int) -> None:
    look = _decode if decode else _exists
    with ThreadPool(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's; what matters is in the notes
        found = pool.imap(look, records, chunksize=16)
        for problems in tqdm(found, total=len(records), desc="images", unit="img", disable=not records):
            for problem, example in problems:
                findings.add(problem, example)


def _decode(record: dict[str, Any]) -> list[tuple[Problem, str]]:
    annotated = (record["width"], record["height"]) if "width" in record and "height" in record else None
    name = printable(record["file_name"])
    try:
        picture = open_picture(record["file_name"], annotated)
    except FileNotFoundError:
        return [(Problem.IMAGE_MISSING, name)]
    except ValueError as error:
        return [(Problem.IMAGE_UNREADABLE, f"{name}: {printable(str(error).rpartition(' cannot be read: ')[2])}")]
    problems = [(Problem[f"IMAGE_{note.name}"], name) for note in picture.notes]
    if annotated not in (None, picture.image.size):
        width, height = picture.image.size
        problems.append((Problem.IMAGE_SIZE, f"{name}: {width} x {height}, annotated {annotated[0]} x {annotated[1]}"))
    return problems


def _exists(record: dict[str, Any]) -> list[tuple[Problem, str]]:
    name = record["file_name"]
    return [] if PathManager.isfile(name) else [(Problem.IMAGE_MISSING, printable(name))]


def _statistics(table: BoxTable, records: list[dict[str, Any]], classes: list[str]) -> dict[str, Any]:
    """Counts of images and boxes (crowds apart), by class, per image and by size; sizes in pixels."""
    real = ~table.crowd
    boxes, labels, owners = table.boxes[real], table.classes[real], table.record[real]
    per_image = np.bincount(owners, minlength=len(records))
    areas = np.clip(boxes[:, 2:], 0, None).prod(1)
    names = classes
    if not classes:  # unknown: their numbers
        numbers_of, labels = np.unique(labels, return_inverse=True)
        names = [str(number) for number in numbers_of]
    pairs = np.unique(np.column_stack([labels, owners]), axis=0)[:, 0] if len(labels) else labels
    by_class, images_by_class = (np.bincount(values, minlength=len(names)) for values in (labels, pairs))
    image_size = {
        side: _spread(np.array([record.get(side, np.nan) for record in records], dtype=np.float64))
        for side in ("width", "height")
    }
    return {
        "images": len(records),
        "images_without_boxes": int((per_image == 0).sum()),
        "image_size": image_size,
        "boxes": len(boxes),
        "crowds": int(table.crowd.sum()),
        "boxes_per_image": {**_spread(per_image), "mean": float(per_image.mean()) if len(records) else None},
        "boxes_by_size": {
            "small": int((areas < _SMALL).sum()),
            "medium": int(((areas >= _SMALL) & (areas < _LARGE)).sum()),
            "large": int((areas >= _LARGE).sum()),
        },
        "box_side": _spread(np.sqrt(areas)),
        "classes": [
            {"name": name, "boxes": int(n), "images": int(m)}
            for name, n, m in zip(names, by_class, images_by_class, strict=True)
        ],
        "classes_without_boxes": [name for name, n in zip(names, by_class, strict=True) if n == 0],
    }


def _spread(values: np.ndarray) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(("min", "median", "max"))
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}
