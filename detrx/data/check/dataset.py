"""Checking a COCO file, a registered dataset, or all datasets of a config."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detrx.coco.annotations import number_classes, parse_coco
from detrx.coco.json_files import read_json
from detrx.coco.problems import Findings, Problem, printable
from detrx.coco.records import check_classes
from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import BoxMode
from detrx.d2.utils import PathManager
from detrx.errors import InvalidInputError

from ..datasets.custom import without_files
from ..datasets.registered import check_registered, load_registered
from .boxes import check_boxes, check_boxes_closely
from .entries import check_labels, usable_records
from .image_files import check_images
from .statistics import statistics_of

__all__ = ["CheckedDataset", "check_coco_file", "check_config", "check_dataset"]


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
        statistics: see `statistics_of`.
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
    """Check a COCO annotation file and its images; problems are collected, and not raised.

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
        records = usable_records(load_registered(name), findings)
        classes = list(metadata.get("thing_classes") or [])
    except Exception as error:  # whatever the reader of the dataset raises
        if not findings.count("error"):
            findings.add(Problem.FILE, f"it cannot be loaded: {printable(str(error) or type(error).__name__)}")
        records, classes = parsed, classes if parsed else []
    if [record["file_name"] for record in parsed] == [record["file_name"] for record in records]:
        records = parsed  # these have annotation ids
    check_labels(records, classes, findings)
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
        _check_queries(dataset, cfg)
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


def _check_queries(dataset: CheckedDataset, cfg: DictConfig) -> None:
    """Find images with more boxes, apart from crowds, than the model of a config has queries."""
    queries = OmegaConf.select(cfg, "model.query_source.num_queries", default=None)
    if queries is not None:
        queries *= OmegaConf.select(cfg, "model.query_source.num_patterns") or 1
    if queries is None or (dataset.statistics["boxes_per_image"]["max"] or 0) <= queries:
        return
    for record in dataset.records:
        boxes = sum(not annotation.get("iscrowd", 0) for annotation in record.get("annotations", ()))
        if boxes > queries:
            why = f"{printable(record['file_name'])}: {boxes} boxes, but model.query_source has {queries} queries"
            dataset.findings.add(Problem.MORE_THAN_QUERIES, why)


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
    if records and role != "test" and (why := table.why_nothing_to_learn()):
        findings.add(Problem.NO_BOXES, f"{len(records)} images: {why}")
    check_images(records, findings, decode, workers)
    statistics = statistics_of(table, records, classes)
    return CheckedDataset(name, json_file, image_root, classes, records, findings, statistics)
