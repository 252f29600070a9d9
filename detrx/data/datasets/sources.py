"""The files and folders of datasets: reading them, and what to say where they are missing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrx.coco.json_files import read_annotations, read_json

__all__ = ["check_image_root", "missing_file", "read_source"]


def read_source(file: Path, lists: Sequence[str] = ()) -> Any:
    """Content of a JSON file; if `lists` names some, an object that has these.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid JSON, or no such object; names the file.
    """
    try:
        return read_annotations(file, lists) if lists else read_json(file)
    except FileNotFoundError as error:
        raise missing_file(file) from error


def check_image_root(json_file: Path, image_root: Path) -> None:
    """Raise FileNotFoundError if the folder of the images of an annotation file does not exist."""
    if not image_root.is_dir():
        raise missing_file(image_root, f"annotation file {json_file}: the folder of its images,")


def missing_file(
    path: str | os.PathLike, kind: str = "annotation file", dataset: str | None = None
) -> FileNotFoundError:
    """The FileNotFoundError for a missing file or folder, which says where datasets are looked for."""
    of_dataset = f" of dataset {dataset!r}" if dataset is not None else ""
    root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    return FileNotFoundError(f"{kind} {path}{of_dataset} does not exist (DETECTRON2_DATASETS is {root!r})")
