"""Videos by frames, on PyAV (an optional package)."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any

from PIL import Image

from detrx.errors import InvalidInputError, MissingImportError

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}


class Video:
    """The frames of a video file, of which every `every`-th is read.

    Iterating gives dicts: `file_name`, `frame` (its index in the file, from 0), `timestamp` (in seconds) and `image`
    (PIL, RGB, turned upright).

    Attributes:
        rate: frames per second that are read.
        length: how many will be read; None if the file does not say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video, or broken; names the file. Iterating raises it, too, after all frames that can be
            read.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file_name: str | os.PathLike, every: int = 1) -> None:
        self.file_name = os.fspath(file_name)
        self.every = every
        if not os.path.isfile(self.file_name):
            raise FileNotFoundError(f"video {self.file_name} does not exist")
        with self._opened() as container:
            stream = container.streams.video[0]
            self.rate = Fraction(stream.average_rate or 25) / every
            self.length = -(-stream.frames // every) or None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._opened() as container:
            index = damaged = 0
            for frame in self._decoded(container):
                if frame is None:
                    damaged += 1
                elif index % self.every == 0:
                    image = frame.to_image().rotate(frame.rotation, expand=True)
                    time = frame.time if frame.time is not None else index / (self.rate * self.every)
                    yield {
                        "file_name": self.file_name,
                        "frame": index,
                        "timestamp": round(float(time), 6),
                        "image": image,
                    }
                index += 1
        if damaged == index:
            raise InvalidInputError(f"video {self.file_name} has no frame that can be read")
        if damaged:
            raise InvalidInputError(f"video {self.file_name} cannot be read completely; damaged frames: {damaged}")

    def _decoded(self, container: Any) -> Iterator[Any]:
        """The frames, with None in place of damaged ones."""
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except _pyav().error.InvalidDataError:  # the decoder goes on with the next
                frames = [None]
            yield from frames

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        av = _pyav()
        try:
            with av.open(self.file_name) as container:
                if not container.streams.video:
                    raise InvalidInputError(f"{self.file_name} has no pictures in it, expected a video")
                yield container
        except av.FFmpegError as error:
            raise InvalidInputError(f"video {self.file_name} cannot be read: {error.strerror}") from error


class VideoWriter:
    """Writes images of one size as a video (H.264, where PyAV has it, else MPEG-4); a context manager.

    Args:
        file_name: its suffix chooses the container, such as .mp4.
        rate: frames per second.

    Raises:
        ImportError: PyAV is not installed.
    """

    def __init__(self, file_name: str | os.PathLike, rate: Fraction) -> None:
        av = _pyav()
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._frame_of = av.VideoFrame.from_image
        self._container = av.open(os.fspath(file_name), "w")
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.pix_fmt = "yuv420p"
        self._size: tuple[int, int] | None = None

    def write(self, image: Image.Image) -> None:
        """Add an RGB image; a last odd row or column is left out."""
        if self._size is None:
            self._size = image.width // 2 * 2, image.height // 2 * 2  # colours have half the resolution
            self._stream.width, self._stream.height = self._size
        frame = self._frame_of(image.crop((0, 0, *self._size)))
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingImportError("videos need PyAV: pip install av") from error
    return av
