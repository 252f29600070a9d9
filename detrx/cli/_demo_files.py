"""Which files the demo reads, and what it calls the drawings that it makes of them."""

import contextlib
import glob
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from detrx.atomic import write_atomically
from detrx.data.images import IMAGE_SUFFIXES
from detrx.data.video import VIDEO_SUFFIXES, Video, VideoWriter
from detrx.errors import InvalidInputError

_LONGEST_STEM = 180  # bytes; file systems allow names of 255, and the rest of a name needs some


def find_files(patterns: list[str]) -> dict[Path, Path]:
    """Image and video files for paths, folders (not recursive) and glob patterns, sorted within each of these.

    Whatever is called like an image or a video is found, also a link that leads nowhere, or a folder.

    Returns:
        Each file -> what its drawing is called: its name if it was given itself, otherwise its path relative to the
        folder, or to the part of the pattern before the first wildcard.

    Raises:
        FileNotFoundError: a path, folder or pattern has no image or video.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isfile(path):
            matches = {path: Path(path.name)}
        else:
            root, paths = (path, path.iterdir()) if os.path.isdir(path) else _expanded(path)
            matches = {each: each.relative_to(root) for each in sorted(paths) if _may_be_read(each)}
        if not matches:
            raise FileNotFoundError(
                f"no image at {pattern}: expected an image or video file, a folder with some or a glob pattern"
            )
        for each, name in matches.items():
            found.setdefault(os.path.abspath(each), (each, name))
    return dict(found.values())


def _expanded(pattern: Path) -> tuple[Path, Iterable[Path]]:
    """The part of a pattern before its first wildcard, and the paths that match the pattern."""
    wild = next((k for k, part in enumerate(pattern.parts) if glob.has_magic(part)), None)
    if wild is None:
        return pattern, ()
    root = Path(*pattern.parts[:wild])
    try:
        return root, root.glob(os.path.join(*pattern.parts[wild:]))
    except (ValueError, NotImplementedError) as error:
        raise InvalidInputError(f"{pattern} is no glob pattern: {error}") from error


def _may_be_read(path: Path) -> bool:
    """Whether a path is called like an image or a video, and opening it does not wait for anyone, as a pipe does."""
    suffix = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return suffix and (path.is_file() or path.is_dir() or not path.exists())


def names_in_dataset(files: Iterable[str], image_root: str | None) -> dict[str, Path]:
    """Each image file of a dataset -> what its drawing is called: its path relative to the folder of the images."""
    files = list(dict.fromkeys(files))
    root = image_root or os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files] or ["."])
    names = {file: Path(os.path.relpath(file, root)) for file in files}
    return {file: Path(name.name) if ".." in name.parts else name for file, name in names.items()}


class Drawings:
    """Writes drawn images to a folder, and on request drawn frames to videos. No drawing replaces another one, or an
    image that it is made of.

    Args:
        folder: is made when the first drawing is written.
        names: each image or video file -> what its drawing is called, with any suffix; folders in it are kept.
        videos: those of which a video is written, by file name.
        reserved: names of other files that are written into the folder.

    Raises:
        ValueError: an original is in the folder, or would be replaced.
    """

    def __init__(
        self, folder: Path, names: Mapping[str, Path], videos: Mapping[str, Video], reserved: Iterable[str] = ()
    ) -> None:
        self.folder, self.videos = folder, videos
        self._originals: dict[tuple[int, int], str] = {}
        for file in names:
            if os.path.realpath(os.path.dirname(file)) == os.path.realpath(folder):
                self._refuse(file)
            with contextlib.suppress(OSError):
                status = os.stat(file)
                self._originals[status.st_dev, status.st_ino] = file
        self._taken = {_key(name) for name in reserved}
        self._stems = self._name(names)
        for stem in self._stems.values():
            self._check_original(folder / f"{stem}.png")
        self._writers: dict[str, VideoWriter] = {}
        self._open = contextlib.ExitStack()

    def write(self, record: dict[str, Any], drawing: Image.Image) -> None:
        file = record["file_name"]
        stem = self._stems[file]
        frame = f"_{record['frame']:06d}" if "frame" in record else ""
        path = self._new_file(f"{stem}{frame}", ".png")
        write_atomically(path, lambda stream: drawing.save(stream, "PNG"))
        if file in self.videos and file not in self._writers:
            path = self._new_file(f"{stem}_detections", ".mp4")
            self._writers[file] = self._open.enter_context(VideoWriter(path, self.videos[file].rate))
        if file in self._writers:
            self._writers[file].write(drawing)

    def _name(self, names: Mapping[str, Path]) -> dict[str, str]:
        """A stem of its own for each file. Where several would have the same, the first has it, the others a number."""
        wanted = {file: os.path.join(*name.parts[:-1], _shortened(name.stem)) for file, name in names.items()}
        free = {_key(stem) for stem in wanted.values()}
        taken = {_key(os.path.splitext(name)[0]) for name in self._taken}
        stems = {}
        for file, stem in wanted.items():
            count, unique = 1, stem
            while _key(unique) in taken or (count > 1 and _key(unique) in free):
                count += 1
                unique = f"{stem}_{count}"
            taken.add(_key(unique))
            stems[file] = unique
        return stems

    def _new_file(self, stem: str, suffix: str) -> Path:
        """A path that nothing was written to yet. A dataset can list an image twice."""
        count, name = 1, stem + suffix
        while _key(name) in self._taken:
            count += 1
            name = f"{stem}_{count}{suffix}"
        self._taken.add(_key(name))
        path = self.folder / name
        self._check_original(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _check_original(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if original := self._originals.get((status.st_dev, status.st_ino)):
                self._refuse(original)

    def _refuse(self, original: str) -> None:
        raise InvalidInputError(
            f"drawings in {self.folder} could replace the input {original}: choose another output folder"
        )

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


def _key(name: str) -> str:
    """Equal for names that some file systems do not tell apart."""
    return unicodedata.normalize("NFC", name.casefold())


def _shortened(stem: str) -> str:
    while len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = stem[:-1]
    return stem
