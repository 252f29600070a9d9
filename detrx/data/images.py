"""Image files of any kind as 8-bit RGB, in the frame that their annotations are given in."""

from __future__ import annotations

import dataclasses
import enum
import os

import numpy as np
from PIL import ExifTags, Image, ImageOps

from detrx.d2.utils import PathManager
from detrx.errors import InvalidInputError

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageNote",
    "Picture",
    "as_picture",
    "image_sizes",
    "open_picture",
    "read_image",
    "upright_rgb",
]

IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"))
"""Of the files in a folder that are taken for images; files that are named may have any suffix."""
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_DIM = 4096  # 16-bit images whose values all lie below this are nearly black as 8 bits


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
        ValueError: it cannot be decoded: empty, truncated, broken, not an image, or of pixels that are refused.
    """
    try:
        with PathManager.open(os.fspath(file_name), "rb") as file, Image.open(file) as picture:
            return as_picture(picture, annotated_size)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {file_name} does not exist") from error
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise InvalidInputError(f"image {file_name} cannot be read: {_reason(file_name, error)}") from error


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
    try:
        with PathManager.open(os.fspath(file_name), "rb") as file, Image.open(file) as picture:
            stored = picture.size
            try:
                orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            except Exception:  # see `_upright`
                orientation = 1
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {file_name} does not exist") from error
    except Exception as error:
        raise InvalidInputError(f"image {file_name} cannot be read: {_reason(file_name, error)}") from error
    return (stored[::-1] if orientation in _SIDEWAYS else stored), stored


def _upright(picture: Image.Image, notes: list[ImageNote]) -> Image.Image:
    try:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return picture
        return ImageOps.exif_transpose(picture)
    except Exception:  # the pixels are loaded already; only the parsing of metadata can have failed
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
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InvalidInputError("its pixels are 32-bit integers, of which none is white; convert it to 8 or 16 bits")
    if values.max() < _DIM:
        notes.append(ImageNote.DIM)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _reason(file_name: str | os.PathLike, error: Exception) -> str:
    if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):  # its own message shows a Python object
        return "it is no image, or of an unknown format"
    return str(error) or type(error).__name__
