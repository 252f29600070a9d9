"""What annotation files hold, dataset dicts or categories, or one clear error."""

import os
from collections.abc import Callable
from typing import Any

from .annotations import number_classes, parse_categories, parse_coco
from .json_files import read_json
from .problems import Findings, Problem
from .values import Id

__all__ = ["categories_of", "check_classes", "load_records", "read_categories"]


def load_records(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    box_mode: Any,
    metadata: Any = None,
    open_file: Callable[..., Any] = open,
) -> list[dict[str, Any]]:
    """Read a COCO annotation file; there is one warning per kind of problem that is no error.

    Args:
        json_file: COCO "instances" annotations.
        image_root: folder that its file names are relative to.
        box_mode: see `parse_coco`.
        metadata: of the dataset (Detectron2's `Metadata`), which gets the classes; category ids become class indices.
            None: category ids stay as they are in the file.
        open_file: see `read_json`.

    Returns:
        Dataset dicts, see `parse_coco`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not what it should be; the message names the file and the first entry at fault.
    """
    content = read_json(json_file, open_file=open_file)
    findings = Findings()
    records, categories = parse_coco(content, image_root, box_mode, findings)
    if metadata is not None:
        check_classes(list(categories.values()), metadata, findings)
    findings.raise_first_error(f"annotation file {json_file}")
    findings.log_warnings(os.fspath(json_file))
    if metadata is not None:
        index_of = number_classes(records, categories)
        metadata.set(thing_classes=list(categories.values()), thing_dataset_id_to_contiguous_id=index_of)
    return records


def check_classes(found: list[str], metadata: Any, findings: Findings) -> None:
    """Find out whether these are the classes that a dataset is registered with, if it is with any."""
    classes = metadata.get("thing_classes")
    if classes is not None and list(classes) != found:
        registered = f"the classes {list(classes)} that dataset {metadata.name!r} is registered with"
        findings.add(Problem.OTHER_CLASSES, f"its categories {found} are not {registered}")


def read_categories(json_file: str | os.PathLike) -> dict[Id, str]:
    """Class names of a COCO annotation file by category id, ordered by it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a COCO file, or has no categories, or an id twice; the message names the file.
    """
    return categories_of(read_json(json_file), f"annotation file {json_file}")


def categories_of(content: Any, source: str) -> dict[Id, str]:
    """Class names by category id, ordered by it, of ``{"categories": [{"id": ..., "name": ...}, ...]}``.

    Raises:
        ValueError: it is no such thing, has no categories, or an id twice; the message begins with `source`.
    """
    findings = Findings()
    categories = parse_categories(content, findings)
    findings.raise_first_error(source)
    return categories
