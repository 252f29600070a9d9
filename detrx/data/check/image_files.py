"""What is wrong with the image files of a dataset."""

from __future__ import annotations

import warnings
from multiprocessing.pool import ThreadPool
from typing import Any

from tqdm import tqdm

from detrx.coco.problems import Findings, Problem, printable
from detrx.d2.utils import PathManager

from ..images import annotated_size, open_picture

__all__ = ["check_images"]

_LONG = 40  # of an image of 1333 pixels, the most that configs for COCO use, 33 remain on the other side


def check_images(records: list[dict[str, Any]], findings: Findings, decode: bool, workers: int) -> None:
    """Decode all image files, or only look whether they exist, in so many threads."""
    look = _decode if decode else _exists
    with ThreadPool(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's; what matters is in the notes
        found = pool.imap(look, records, chunksize=16)
        for problems in tqdm(found, total=len(records), desc="images", unit="img", disable=not records):
            for problem, example in problems:
                findings.add(problem, example)


def _decode(record: dict[str, Any]) -> list[tuple[Problem, str]]:
    annotated = annotated_size(record)
    name = printable(record["file_name"])
    try:
        picture = open_picture(record["file_name"], annotated)
    except FileNotFoundError:
        return [(Problem.IMAGE_MISSING, name)]
    except ValueError as error:
        return [(Problem.IMAGE_UNREADABLE, f"{name}: {printable(str(error).rpartition(' cannot be read: ')[2])}")]
    problems = [(Problem[f"IMAGE_{note.name}"], name) for note in picture.notes]
    problems += _extreme(name, picture.image.size)
    if annotated not in (None, picture.image.size):
        width, height = picture.image.size
        problems.append((Problem.IMAGE_SIZE, f"{name}: {width} x {height}, annotated {annotated[0]} x {annotated[1]}"))
    return problems


def _exists(record: dict[str, Any]) -> list[tuple[Problem, str]]:
    name = printable(record["file_name"])
    if not PathManager.isfile(record["file_name"]):
        return [(Problem.IMAGE_MISSING, name)]
    size = annotated_size(record)
    return _extreme(name, size) if size else []


def _extreme(name: str, size: tuple[int, int]) -> list[tuple[Problem, str]]:
    return [(Problem.IMAGE_SHAPE, f"{name}: {size[0]} x {size[1]}")] if max(size) > _LONG * min(size) else []
