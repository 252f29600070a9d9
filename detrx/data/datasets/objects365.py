"""Objects365 v2: its COCO files name images by where they are on the server, not by where the archives unpack them."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from detrx.errors import InvalidInputError

from .file_classes import FileClasses
from .sources import check_image_root, read_source

FILES = {split: f"objects365/annotations/zhiyuan_objv2_{split}.json" for split in ("train", "val")}
# Annotated, but in none of the official archives.
_NOT_PUBLISHED = frozenset(
    ("patch16/objects365_v2_00908726.jpg", "patch6/objects365_v1_00320532.jpg", "patch6/objects365_v1_00320534.jpg")
)


def objects365_classes(root: Callable[[], Path]) -> FileClasses:
    """The 365 classes; `root` holds `FILES`."""
    return FileClasses(lambda: [root() / FILES["val"], root() / FILES["train"]])


def load_objects365(json_file: Path, image_root: Path, classes: FileClasses) -> list[dict[str, Any]]:
    """Dataset dicts of one of the official annotation files.

    Their `file_name` is images/v1/patch8/<image>.jpg or images/v2/patch16/<image>.jpg. The image is looked for there if
    `image_root` has a folder images, otherwise at patch8/<image>.jpg. The three images that were never published are
    left out unless they are there.

    Args:
        json_file: zhiyuan_objv2_train.json or zhiyuan_objv2_val.json.
        image_root: folder of the images of this split.
        classes: gets the classes of the file.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the content of the file is not what it should be; names the file and what is wrong.
    """
    content = read_source(json_file, lists=["images"])
    check_image_root(json_file, image_root)
    as_on_server = (image_root / "images").is_dir()
    missing = set()
    for position, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise InvalidInputError(f"annotation file {json_file}: images[{position}] has no 'file_name'")
        patch = "/".join(PurePosixPath(image["file_name"]).parts[-2:])
        image["file_name"] = image["file_name"] if as_on_server else patch
        if patch in _NOT_PUBLISHED and not (image_root / image["file_name"]).is_file():
            missing.add(str(image_root / image["file_name"]))
    return [r for r in classes.read_records(content, json_file, image_root) if r["file_name"] not in missing]
