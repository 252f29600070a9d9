"""Where datasets in the layout of Pascal VOC have their annotations, lists and images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detrx.data.images import IMAGE_SUFFIXES

from .files import SPLIT_FOLDERS, files_in, listed_names, spellings
from .labelled import ReadErrors

__all__ = ["annotation_name", "annotations_by_split", "pictures_by_name", "voc_folders"]

_SPLITS = ("train", "val", "trainval", "test")


def voc_folders(source: Path) -> list[Path]:
    """The datasets in a folder: itself, or those of several years.

    Raises:
        FileNotFoundError: there is none.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is no folder")
    if (source / "Annotations").is_dir():
        return [source]
    named = source if source.name else source.resolve()
    if named.name == "Annotations" and not _holds_images(source):
        return [named.parent]
    years = sorted(path for path in source.glob("VOC*") if (path / "Annotations").is_dir())
    if not years and not files_in(source, (".xml",)):
        raise FileNotFoundError(f"{source} has no Annotations, no VOC*/Annotations, and no XML files")
    return years or [source]


def annotations_by_split(folder: Path, splits: Sequence[str] | None, problems: ReadErrors) -> dict[str, list[Path]]:
    """The annotation files of each split of a dataset, of which `splits` are wanted, or all."""
    places = (folder / "ImageSets" / "Main", folder / "ImageSets")
    lists = next((place for place in places if place.is_dir()), folder)
    found = {path.stem: path for path in sorted(lists.glob("*.txt"))} if lists != folder else {}
    if found:
        names = splits or [split for split in _SPLITS if split in found] or list(found)
        return {split: _listed(found[split], folder, problems) for split in names if split in found}
    files = files_in(_annotations(folder), (".xml",))
    by_folder: dict[str, list[Path]] = {}
    for file in files:
        top = file.relative_to(_annotations(folder)).parts[0]
        by_folder.setdefault(SPLIT_FOLDERS.get(top, ""), []).append(file)
    return {"train": files} if "" in by_folder else {s: f for s, f in by_folder.items() if not splits or s in splits}


def annotation_name(xml: Path, folder: Path) -> str:
    """The name that an annotation and its image have in common: its path in the folder, without suffix."""
    return os.path.splitext(os.path.relpath(xml, _annotations(folder)))[0]


def pictures_by_name(folder: Path) -> dict[str, list[Path]]:
    """Image files of a dataset by their path without suffix, and by their name alone."""
    places = [folder / name for name in ("JPEGImages", "images") if (folder / name).is_dir()]
    place = places[0] if places else _annotations(folder) if _holds_images(_annotations(folder)) else folder
    pictures: dict[str, list[Path]] = {}
    for path in files_in(place, IMAGE_SUFFIXES):
        pictures.setdefault(os.path.splitext(os.path.relpath(path, place))[0], []).append(path)
    by_name: dict[str, list[Path]] = {}
    for path_name, paths in pictures.items():
        by_name.setdefault(os.path.basename(path_name), []).extend(paths)
    return by_name | pictures


def _annotations(folder: Path) -> Path:
    return folder / "Annotations" if (folder / "Annotations").is_dir() else folder


def _holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _listed(file: Path, folder: Path, problems: ReadErrors) -> list[Path]:
    """The annotation files that a list names. Lists of single classes have a number, -1, 0 or 1, after each name."""
    xmls = []
    for number, line in listed_names(file):
        name, _, mark = line.rpartition(" ")
        names = [line, name.rstrip()] if mark in ("-1", "0", "1") else [line]
        names += [os.path.splitext(each)[0] for each in names if os.path.splitext(each)[1].lower() in IMAGE_SUFFIXES]
        stems = [_annotations(folder) / each for entry in names for each in spellings(entry) if each]
        candidates = [stem.with_name(stem.name + suffix) for stem in stems for suffix in (".xml", ".XML")]
        xml = next((candidate for candidate in candidates if candidate.is_file()), None)
        if xml is None:
            problems.add(file, number, f"there is no {candidates[0]}")
        else:
            xmls.append(xml)
    return list(dict.fromkeys(xmls))
