"""LVIS v1: annotation files that extend COCO's, on the images of COCO 2017."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detrx.errors import InvalidInputError

from .file_classes import FileClasses
from .sources import check_image_root, read_source

FILES = {split: f"lvis/lvis_v1_{split}.json" for split in ("train", "val")}


def lvis_classes(root: Callable[[], Path]) -> FileClasses:
    """The 1203 classes, called by the first of their synonyms, as Detectron2 calls them; `root` holds `FILES`."""

    def first_synonym(category: dict[str, Any]) -> str:
        return (category.get("synonyms") or [category["name"]])[0]

    return FileClasses(lambda: [root() / FILES["val"], root() / FILES["train"]], first_synonym)


def load_lvis(json_file: Path, image_root: Path, classes: FileClasses) -> list[dict[str, Any]]:
    """Dataset dicts of an LVIS annotation file, as Detectron2's `load_lvis_json` makes them.

    They are those of a COCO file with `not_exhaustive_category_ids` (classes of which not all objects are annotated)
    and `neg_category_ids` (classes that are certainly not in the image), both lists of category ids as in the file.
    Images are found by the last two parts of their `coco_url`, such as train2017/000000391895.jpg.

    Args:
        json_file: lvis_v1_train.json or lvis_v1_val.json.
        image_root: holds train2017 and val2017.
        classes: gets the classes of the file.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the content of the file is not what it should be; names the file and what is wrong.
    """
    content = read_source(json_file, lists=["images"])
    extra = {}
    for position, image in enumerate(content["images"]):
        for key in ("id", "coco_url", "not_exhaustive_category_ids", "neg_category_ids"):
            if not isinstance(image, dict) or key not in image:
                raise InvalidInputError(f"annotation file {json_file}: images[{position}] has no {key!r}")
        image["file_name"] = "/".join(str(image["coco_url"]).split("/")[-2:])
        extra[image["id"]] = {key: image[key] for key in ("not_exhaustive_category_ids", "neg_category_ids")}
    records = classes.read_records(content, json_file, image_root)
    check_image_root(json_file, image_root)
    return [record | extra[record["image_id"]] for record in records]
