"""Writing a digits dataset as a COCO folder: once, completely or not at all, by one process at a time."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image
from tqdm import tqdm

from detrx.errors import MissingImportError

from .render import render_canvas
from .spec import DigitsSpec

SPLITS = ("train", "val")
CLASSES = tuple(str(digit) for digit in range(10))


def prepare(root: str | os.PathLike, spec: DigitsSpec, progress: bool = True) -> Path:
    """Make sure that `root` holds the dataset of `spec`, generating it if it does not exist.

    Any number of processes may call this at once: one generates, the others wait for it.

    Args:
        root: gets `train/*.png`, `val/*.png`, `annotations/train.json`, `annotations/val.json` (COCO format) and
            `spec.json`.
        progress: show a progress bar while generating.

    Returns:
        `root` as a path.

    Raises:
        FileExistsError: `root` exists and was not generated from `spec`.
    """
    root = Path(root)
    if _is_ready(root, spec):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(root)):
        if _is_ready(root, spec):  # another process was faster
            return root
        for leftover in root.parent.glob(f".{root.name}.partial-*"):  # its writer held the lock, so it is dead
            shutil.rmtree(leftover, ignore_errors=True)
        partial = root.parent / f".{root.name}.partial-{os.getpid()}"
        try:
            _generate(partial, spec, root.name, progress)
            os.rename(partial, root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return root


def split_samples(spec: DigitsSpec) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Handwritten samples of each split, disjoint and with the same share of every class.

    Returns:
        split name -> (images (S, 8, 8) with values 0-16, classes (S,), indices (S,) into scikit-learn's `load_digits`).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingImportError("the digits dataset needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    rng = np.random.default_rng(spec.seed)
    chosen: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        cut = max(1, round(len(members) * spec.val_fraction))
        chosen["val"].append(members[:cut])
        chosen["train"].append(members[cut:])
    indices = {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}
    return {split: (digits.images[i], digits.target[i], i) for split, i in indices.items()}


def _is_ready(root: Path, spec: DigitsSpec) -> bool:
    if not root.exists():
        return False
    wanted = spec.as_json()
    try:
        found = json.loads((root / "spec.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(
            f"{root} exists but has no readable spec.json, so it is not a generated digits dataset; "
            "move it away, or set DETECTRON2_DATASETS to another folder"
        ) from None
    if found != wanted:
        differences = ", ".join(
            f"{key}: {found.get(key)} there, {wanted.get(key)} wanted"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        )
        raise FileExistsError(
            f"{root} holds a digits dataset made with other settings ({differences}); "
            "delete it to have it generated again, or set DETECTRON2_DATASETS to another folder"
        )
    return True


def _generate(folder: Path, spec: DigitsSpec, name: str, progress: bool) -> None:
    samples = split_samples(spec)
    counts = {"train": spec.num_train, "val": spec.num_val}
    (folder / "annotations").mkdir(parents=True)
    with tqdm(total=sum(counts.values()), desc=f"generating {name}", unit="img", disable=not progress) as bar:
        for split_index, split in enumerate(SPLITS):
            (folder / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in range(counts[split]):
                # One generator per image: an image does not depend on how many others there are.
                rng = np.random.default_rng([spec.seed, split_index, index])
                pixels, boxes, classes = render_canvas(rng, spec, *samples[split][:2])
                file_name = f"{index:06d}.png"
                Image.fromarray(pixels).save(folder / split / file_name, format="PNG", compress_level=3)
                images.append({"id": index + 1, "file_name": file_name, "width": spec.canvas, "height": spec.canvas})
                annotations.extend(_annotations(index + 1, boxes, classes, first_id=len(annotations) + 1))
                bar.update()
            coco = {
                "info": {"description": f"{name} {split}: handwritten digits on cluttered canvases"},
                "images": images,
                "annotations": annotations,
                "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
            }
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
    (folder / "spec.json").write_text(json.dumps(spec.as_json(), indent=2) + "\n", encoding="utf-8")


def _annotations(image_id: int, boxes: np.ndarray, classes: np.ndarray, first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for i, ((x1, y1, x2, y2), label) in enumerate(zip(boxes.tolist(), classes.tolist(), strict=True))
    ]
