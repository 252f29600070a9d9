"""Annotations in another format than COCO's, converted once: asking for the COCO file makes it."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iopath.common.file_io import file_lock

from detrx.atomic import write_atomically

from .sources import missing_file

logger = logging.getLogger(__name__)

_FORMAT = 1  # of what the converters write: raised, files are converted again


def converted_file(name: str, folder: Path, sources: Sequence[Path], convert: Callable[[], dict[str, Any]]) -> Path:
    """The COCO file of a dataset, made by `convert` if there is none for the sources as they are now.

    It is `<name>-<digest>.json` in `folder`/detrx, or, where this cannot be written, in detrx/ of the user's cache
    ($XDG_CACHE_HOME or ~/.cache). The digest is that of the names, sizes and times of change of the sources: a source
    that was edited is noticed without reading thousands of files each time, unless its time was set back. Any number of
    processes may call this at once: one converts, the others wait for it, and the file is there completely or not at
    all.

    Args:
        folder: of the dataset.
        sources: the files that are read by `convert`.

    Raises:
        FileNotFoundError: a source does not exist.
        PermissionError: neither place can be written.
    """
    file_name = f"{name}-{_digest(folder, sources)}.json"
    places = [folder / "detrx", Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "detrx"]
    for place in places:
        if (place / file_name).is_file():
            return place / file_name
    file = _first_writable(places, name) / file_name
    with file_lock(str(file)):
        if not file.is_file():  # no other process was faster
            logger.info("Converting the annotations of %s to %s, once", name, file)
            content = json.dumps(convert()).encode()
            write_atomically(file, lambda stream: stream.write(content))
    return file


def _digest(folder: Path, sources: Sequence[Path]) -> str:
    digest = hashlib.sha256(str(_FORMAT).encode())
    for source in sources:
        try:
            status = source.stat()
            line = f"\0{source.relative_to(folder)} {status.st_size} {status.st_mtime_ns}"
            digest.update(line.encode("utf-8", "surrogateescape"))
        except FileNotFoundError as error:
            raise missing_file(source) from error
    return digest.hexdigest()[:12]


def _first_writable(places: Sequence[Path], name: str) -> Path:
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:
            continue
    raise PermissionError(
        f"the converted annotations of {name} cannot be written: neither {' nor '.join(map(str, places))} is a folder "
        "with write permission; set XDG_CACHE_HOME to one"
    )
