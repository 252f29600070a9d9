"""Annotation files that are COCO's but for the names of their images."""

from pathlib import Path
from typing import Any

from detrx.coco.annotations import parse_coco
from detrx.coco.problems import Findings
from detrx.errors import InvalidInputError

from .converted import missing_file, read_source
from .file_classes import FileClasses


def read_content(json_file: Path) -> dict[str, Any]:
    """Content of an annotation file, with a list of images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid JSON, or has no list of images; names the file.
    """
    content = read_source(json_file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InvalidInputError(f"annotation file {json_file}: has no list 'images'")
    return content


def records_of(
    content: dict[str, Any], json_file: Path, image_root: Path, classes: FileClasses
) -> list[dict[str, Any]]:
    """Dataset dicts of an annotation file, as those of `load_coco`, ordered by image id.

    Args:
        content: of the file, with the names of the images relative to `image_root`.
        classes: gets the classes of the file.

    Raises:
        ValueError: the content is not what it should be; names the file and the first entry at fault.
    """
    findings = Findings()
    records, _ = parse_coco(content, image_root, findings)
    if (problem := findings.first_error()) is not None:
        raise InvalidInputError(f"annotation file {json_file}: {problem}")
    classes.remember(content["categories"])
    index_of = classes.ids()
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = index_of[annotation["category_id"]]
    return records


def check_image_root(json_file: Path, image_root: Path) -> None:
    """Raises FileNotFoundError if the folder of the images of an annotation file does not exist."""
    if not image_root.is_dir():
        raise missing_file(image_root, f"annotation file {json_file}: the folder of its images,")
