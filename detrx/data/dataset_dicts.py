"""Registered datasets as dataset dicts, with one clear error for whatever is wrong with them."""

import contextlib
import os
from collections.abc import Iterator

from detrx.coco.annotations import parse_coco
from detrx.coco.json_files import read_json
from detrx.coco.problems import Findings
from detrx.coco.records import check_classes
from detrx.d2.data import MetadataCatalog
from detrx.d2.data import get_detection_dataset_dicts as _get_detection_dataset_dicts
from detrx.d2.structures import BoxMode
from detrx.errors import InvalidInputError

from .check.boxes import check_boxes
from .datasets.registered import check_registered
from .datasets.sources import missing_file

__all__ = ["get_detection_dataset_dicts"]


def get_detection_dataset_dicts(names: str | list[str], filter_empty: bool = True) -> list[dict]:
    """Detectron2's function of this name, with clear errors for unknown datasets and faulty annotation files.

    Boxes without area, and boxes outside of their image, are reported in one warning per kind; `DetectionMapper` leaves
    them out, or clips them.

    Args:
        names: one or several registered datasets with the same classes, to be concatenated.
        filter_empty: leave out images without annotations (other than crowds), as training wants.

    Raises:
        ValueError: a name is not registered, or the annotation file is faulty (see `load_coco`).
        FileNotFoundError: the annotation file of a dataset does not exist.
    """
    names = [names] if isinstance(names, str) else list(names)
    check_registered(names)
    files = {name: MetadataCatalog.get(name).get("json_file") for name in names}
    with contextlib.ExitStack() as stack:
        for name, json_file in files.items():
            if json_file and MetadataCatalog.get(name).get("evaluator_type", "coco") == "coco":  # LVIS files are others
                stack.enter_context(_clear_errors(os.fspath(json_file), name))
        records = _get_detection_dataset_dicts(names, filter_empty=filter_empty)
    findings = Findings()
    check_boxes(records, findings)
    source = ", ".join(f"dataset {name} ({json_file})" if json_file else name for name, json_file in files.items())
    findings.raise_first_error(source)
    findings.log_warnings(source)
    return records


@contextlib.contextmanager
def _clear_errors(json_file: str, name: str) -> Iterator[None]:
    """Replace an exception of Detectron2's reader by one that says what is wrong with the file, if something is."""
    try:
        yield
    except Exception as error:
        if "://" in json_file:  # not a local file: nothing to look at here
            raise
        if not os.path.isfile(json_file):
            raise missing_file(json_file, dataset=name) from error
        source = f"annotation file {json_file}"
        if str(error).startswith(f"{source}:"):
            raise
        findings = Findings()
        _, categories = parse_coco(read_json(json_file), "", BoxMode.XYWH_ABS, findings)
        check_classes(list(categories.values()), MetadataCatalog.get(name), findings)
        try:
            findings.raise_first_error(source)
        except InvalidInputError as clear:
            raise clear from error
        raise
