"""Image files of any kind as 8-bit RGB, in the frame that their annotations are given in."""

from __future__ import annotations

import dataclasses
import enum
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from detrx.d2.utils import PathManager
from detrx.errors import InvalidInputError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageNote",
    "Picture",
    "annotated_size",
    "as_picture",
    "image_sizes",
    "open_picture",
    "read_image",
    "upright_rgb",
]

IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"))
"""Of the files in a folder that are taken for images; files that are named may have any suffix."""
MAX_PIXELS = "DETRX_MAX_IMAGE_PIXELS"
"""Environment variable: images with more pixels are refused, 0 is no limit. Where it is not set, Pillow's limit holds
(178,956,970 pixels, or twice the `PIL.Image.MAX_IMAGE_PIXELS` of the program). The environment is what all processes
and threads of a program share, so that it holds wherever images are opened."""
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_DIM = 4096  # 16-bit images whose values all lie below this are nearly black as 8 bits
# What Pillow raises for broken bytes, and for too large images. An AttributeError, for example, is a mistake of ours.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageNote(enum.Enum):
    """Something worth knowing about an image file that can be read."""

    NOT_TURNED = "its EXIF orientation is not applied, because its annotation gives the size of the unturned image"
    BAD_EXIF = "its EXIF data are broken, and its orientation is not applied"
    TRANSPARENT = "it has transparent pixels, whose hidden colours become visible: transparency is dropped"
    DIM = f"it has 16 bits per pixel, but no value of {_DIM} or more: it is nearly black, since 65535 is white"
    FRAMES = "it has several frames, of which the first is taken"


@dataclasses.dataclass
class Picture:
    """A decoded image file: 8-bit RGB, and what is worth noting about it."""

    image: Image.Image
    notes: list[ImageNote]


def open_picture(file_name: str | os.PathLike, annotated_size: tuple[int, int] | None = None) -> Picture:
    """Decode an image file.

    It is turned upright as its EXIF orientation says, as COCO's tools and annotation programs show it. If however
    `annotated_size` is the size of the unturned image and not that of the upright one, whoever made the annotations did
    not apply the orientation; then it is not applied here either, so that the boxes fit.

    Grey images of 16 bits are scaled linearly: 65535 becomes 255. Transparency is dropped, not composited (as
    Detectron2, OpenCV and torchvision do). Palettes, CMYK, YCbCr and others are converted to RGB. Floating-point and
    32-bit pixels have no white, and are refused.

    Args:
        file_name: path, or whatever else `PathManager` opens.
        annotated_size: (width, height) that the annotation gives, if any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened or decoded: empty, truncated, broken, no image, too large (see `MAX_PIXELS`),
            or of pixels that are refused.
    """
    with _opened(file_name) as picture:
        return as_picture(picture, annotated_size)


@contextmanager
def _opened(file_name: str | os.PathLike) -> Iterator[Image.Image]:
    """An image file whose header has been read. Errors of decoders, inside as well, become one that names the file."""
    try:
        with PathManager.open(os.fspath(file_name), "rb") as file:
            limit = _own_limit()
            if limit is not None:
                Image.MAX_IMAGE_PIXELS = limit or None  # of the process: Pillow has no limit per call
            with Image.open(file) as picture:
                if limit and picture.width * picture.height > limit:  # Pillow allows twice as many
                    raise Image.DecompressionBombError
                yield picture
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {file_name} does not exist") from error
    except _DECODER_ERRORS as error:
        raise InvalidInputError(f"image {file_name} cannot be read: {_reason(file_name, error)}") from error


def _own_limit() -> int | None:
    """What `MAX_PIXELS` is set to."""
    text = os.environ.get(MAX_PIXELS, "")
    if text and not (text.isascii() and text.isdigit()):
        raise InvalidInputError(f"the environment variable {MAX_PIXELS} is {text!r}, expected a number of pixels")
    return int(text) if text else None


def annotated_size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that a dataset dict gives for its image, if it does."""
    return (record["width"], record["height"]) if "width" in record and "height" in record else None


def as_picture(picture: Image.Image, annotated_size: tuple[int, int] | None = None) -> Picture:
    """What `open_picture` does with a file, for an image that is open already.

    Raises:
        ValueError: its pixels are floating-point numbers or 32-bit integers. Decoders raise other errors, too.
    """
    notes: list[ImageNote] = []
    picture.load()
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # the camera's previews
        notes.append(ImageNote.FRAMES)
    turned = _upright(picture, notes)
    if annotated_size is not None and tuple(annotated_size) == picture.size != turned.size:
        turned = picture
        notes.append(ImageNote.NOT_TURNED)
    return Picture(_as_rgb(turned, notes), notes)


def read_image(file_name: str | os.PathLike, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """The image of `open_picture`: RGB, in the frame of its annotations. Raises what `open_picture` raises."""
    return open_picture(file_name, annotated_size).image


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The image of `as_picture`: RGB, turned as its EXIF orientation says."""
    return as_picture(picture).image


def image_sizes(file_name: str | os.PathLike) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of an image file upright, and as stored; only its header is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image.
    """
    with _opened(file_name) as picture:
        stored = picture.size
        try:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        except _DECODER_ERRORS:  # see `_upright`
            orientation = 1
    return (stored[::-1] if orientation in _SIDEWAYS else stored), stored


def _upright(picture: Image.Image, notes: list[ImageNote]) -> Image.Image:
    try:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return picture
        return ImageOps.exif_transpose(picture)
    except _DECODER_ERRORS:  # the pixels are loaded already; only the parsing of metadata can have failed
        notes.append(ImageNote.BAD_EXIF)
        return picture


def _as_rgb(picture: Image.Image, notes: list[ImageNote]) -> Image.Image:
    if picture.mode == "F":
        raise InvalidInputError(
            "its pixels are floating-point numbers, of which none is white; convert it to 8 or 16 bits"
        )
    if picture.mode == "I" or picture.mode.startswith("I;"):
        return _from_16_bits(picture, notes)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        lowest, _ = picture.getchannel("A").getextrema()
        if lowest < 255:  # type: ignore[operator]  # a number: there is one channel
            notes.append(ImageNote.TRANSPARENT)
    return picture.convert("RGB")


def _from_16_bits(picture: Image.Image, notes: list[ImageNote]) -> Image.Image:
    """Pillow's own conversion would clip all values above 255."""
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise InvalidInputError("its pixels are 32-bit integers, of which none is white; convert it to 8 or 16 bits")
    if values.max() < _DIM:
        notes.append(ImageNote.DIM)
    values = values.astype(np.uint32)  # holds 65535 * 255 + 32767; in place, since images can be large
    values *= 255
    values += 32767
    values //= 65535
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _reason(file_name: str | os.PathLike, error: Exception) -> str:
    if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
        return "the file is empty"
    if os.path.isdir(file_name):
        return "it is a folder"
    if isinstance(error, Image.UnidentifiedImageError):  # its own message shows a Python object
        return "it is no image, or of an unknown format"
    if isinstance(error, Image.DecompressionBombError):
        limit = _own_limit() or 2 * (Image.MAX_IMAGE_PIXELS or 0)
        advice = f"set the environment variable {MAX_PIXELS} to a larger number, or to 0 for no limit"
        return f"it has more than {limit} pixels; if you trust it, {advice}"
    if isinstance(error, MemoryError):
        return "there is not enough memory for its pixels"
    if isinstance(error, OSError) and error.strerror:  # without the number of the error, and the name once more
        return error.strerror
    return str(error) or type(error).__name__
