"""Registered datasets as dataset dicts, with one clear error for whatever is wrong with them."""

import logging

import numpy as np

from detrx.coco.annotations import parse_coco
from detrx.coco.json_files import read_json
from detrx.coco.problems import Findings, Problem
from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import BoxMode
from detrx.d2.utils import PathManager
from detrx.errors import InvalidInputError

from .check.boxes import BoxTable, check_boxes
from .datasets.registered import check_registered, load_registered

__all__ = ["get_detection_dataset_dicts"]

logger = logging.getLogger(__name__)


def get_detection_dataset_dicts(names: str | list[str], filter_empty: bool = True) -> list[dict]:
    """The dataset dicts of one or several registered datasets, one after the other.

    As Detectron2's function of this name, with the same records whichever provider is active, and clear errors. Boxes
    without area, and boxes outside of their image, are reported in one warning per kind; `DetectionMapper` leaves them
    out, or clips them.

    Args:
        names: one or several registered datasets with the same classes.
        filter_empty: leave out images without annotations (other than crowds), as training wants.

    Raises:
        ValueError: a name is not registered, the classes differ, a dataset is empty or its annotation file is faulty
            (see `load_coco`), or with `filter_empty`, there is nothing to train on.
        FileNotFoundError: the annotation file of a dataset does not exist.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise InvalidInputError("no dataset is named")
    check_registered(names)
    records = []
    for name in names:
        found = load_registered(name)
        if not found:
            raise InvalidInputError(f"dataset {name!r} has no images")
        records += found
    files = {name: MetadataCatalog.get(name).get("json_file") for name in names}
    source = ", ".join(f"dataset {name} ({json_file})" if json_file else name for name, json_file in files.items())
    findings = Findings()
    table = check_boxes(records, findings)
    _check_classes(names, table, records, findings)
    findings.raise_first_error(source)
    findings.log_warnings(source)
    if not filter_empty or "annotations" not in records[0]:
        return records
    if why := table.why_nothing_to_learn():
        raise InvalidInputError(f"{source}: there is nothing to train on; {why}{_strays(names)}")
    kept = [each for each in records if any(not a.get("iscrowd", 0) for a in each["annotations"])]
    logger.info("Removed %d images without objects; %d images left", len(records) - len(kept), len(kept))
    return kept


def _check_classes(names: list[str], table: BoxTable, records: list[dict], findings: Findings) -> None:
    """Compare the classes of the datasets with each other and with the annotations; log how often each occurs."""
    classes = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    if any(each is None for each in classes):
        return
    for name, others in zip(names, classes, strict=True):
        if list(others) != list(classes[0]):
            raise InvalidInputError(
                f"dataset {name!r} has the classes {list(others)}, but {names[0]!r} has {list(classes[0])}"
            )
    count = len(classes[0])
    unknown = ~table.crowd & ((table.classes < 0) | (table.classes >= count))
    for i in np.flatnonzero(unknown).tolist():
        what = f"{table.describe(records, i)} has category_id {table.classes[i]}, expected 0 to {count - 1}"
        findings.add(Problem.UNKNOWN_CATEGORY, what)
    numbers = np.bincount(table.classes[~table.crowd & ~unknown], minlength=count)
    logger.info("Objects: %s", ", ".join(f"{name} {n}" for name, n in zip(classes[0], numbers, strict=True)))


def _strays(names: list[str]) -> str:
    """What an error says about annotations of images that the files of these datasets do not list."""
    findings = Findings()
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file") and metadata.get("evaluator_type") == "coco":
            content = read_json(metadata.json_file, open_file=PathManager.open)
            parse_coco(content, "", BoxMode.XYWH_ABS, findings)
    for entry in findings.entries():
        if entry["kind"] == "stray-annotation":
            return f" ({entry['count']} {entry['meaning']}, such as: {entry['examples'][0]})"
    return ""
