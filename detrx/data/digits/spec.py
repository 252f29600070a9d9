"""What a digits dataset looks like: every knob of the generator, and the named variants."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from detrx.errors import InvalidInputError

BACKGROUNDS = ("solid", "linear", "radial", "blotches", "stripes")
SHAPES = ("line", "ellipse", "rectangle", "polygon", "outline", "scribble", "cross")

# Part of the spec file: raise it whenever the same spec would give other pixels or other boxes.
GENERATOR_VERSION = 2


@dataclass(frozen=True)
class DigitsSpec:
    """All settings of one generated dataset; pairs are inclusive (low, high) ranges.

    Attributes:
        canvas: side of the square images, in pixels.
        digit_size: longer side of a digit's ink, in pixels, drawn uniformly.
        digits_per_image: how many digits an image gets, drawn uniformly. A crowded canvas may end up with fewer (never
            fewer than one), because a digit that finds no free place is left out.
        max_overlap: bound on intersection area / area of the smaller box, for every pair of boxes of an image.
        min_visible: least fraction of a digit's ink that digits drawn over it must leave visible.
        max_rotation: digits are turned by up to this many degrees either way.
        min_contrast: least root-mean-square colour difference (0-255) between a digit and what lies under its box.
        noise: standard deviation (0-255) of the pixel noise of an image.
        backgrounds: which of `BACKGROUNDS` occur.
        shapes: which of `SHAPES` occur as distractors. None of them is a digit.
        shapes_per_image: how many distractors an image gets.
        num_train, num_val: number of images.
        val_fraction: share of the handwritten samples (of each class) that only validation images may use.
        seed: everything random follows from it.
    """

    canvas: int = 128
    digit_size: tuple[int, int] = (12, 40)
    digits_per_image: tuple[int, int] = (1, 8)
    max_overlap: float = 0.12
    min_visible: float = 0.85
    max_rotation: float = 10.0
    min_contrast: float = 64.0
    noise: tuple[float, float] = (0.0, 14.0)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    shapes: tuple[str, ...] = SHAPES
    shapes_per_image: tuple[int, int] = (2, 9)
    num_train: int = 2000
    num_val: int = 300
    val_fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("digit_size", "digits_per_image", "noise", "shapes_per_image"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise InvalidInputError(
                    f"DigitsSpec.{name} must be (low, high) with 0 <= low <= high, got {(low, high)}"
                )
        if not 4 <= self.digit_size[0] <= self.digit_size[1] <= self.canvas:
            raise InvalidInputError(
                f"DigitsSpec.digit_size must lie in 4..canvas ({self.canvas}), got {self.digit_size}"
            )
        if self.digits_per_image[0] < 1:
            raise InvalidInputError(f"DigitsSpec.digits_per_image must start at 1 or more, got {self.digits_per_image}")
        if self.num_train < 1 or self.num_val < 1:
            raise InvalidInputError(
                f"DigitsSpec needs at least one image per split, got {self.num_train} and {self.num_val}"
            )
        if not 0 < self.val_fraction < 1:
            raise InvalidInputError(f"DigitsSpec.val_fraction must lie between 0 and 1, got {self.val_fraction}")
        for name, known in (("backgrounds", BACKGROUNDS), ("shapes", SHAPES)):
            unknown = set(getattr(self, name)) - set(known)
            if unknown or not getattr(self, name):
                raise InvalidInputError(f"DigitsSpec.{name} must name some of {known}, got {getattr(self, name)}")

    def as_json(self) -> dict[str, Any]:
        """The content of the spec file beside the data; equal dicts mean equal bytes."""
        fields = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return {"generator": "detrx.data.digits", "version": GENERATOR_VERSION, **fields}


VARIANTS = {
    "digits": DigitsSpec(),
    "digits_large": DigitsSpec(digit_size=(28, 56), digits_per_image=(1, 5), shapes_per_image=(1, 5)),
    "digits_hard": DigitsSpec(
        canvas=192, digit_size=(8, 48), digits_per_image=(1, 20), shapes_per_image=(4, 16), noise=(0.0, 18.0)
    ),
}
