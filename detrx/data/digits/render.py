"""Drawing one canvas: background, distractors, digits, noise; and the tight boxes of the visible ink."""

import math

import numpy as np
from PIL import Image, ImageDraw

from .spec import DigitsSpec

_SUPERSAMPLE = 2  # distractors are drawn this much larger and averaged down, for smooth edges
_GLYPH_SIDE = 64  # the 8 x 8 samples are enlarged to this before rotation
_PLACEMENT_TRIALS = 30


def render_canvas(
    rng: np.random.Generator, spec: DigitsSpec, samples: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        rng: source of everything random.
        samples: (S, 8, 8) handwritten digits, values 0-16, to choose from.
        labels: (S,) their classes.

    Returns:
        image (H, W, 3) uint8; boxes (N, 4) int XYXY, where x2 and y2 are one past the last pixel of visible ink; and
        the classes (N,), N >= 1.
    """
    canvas = _background(rng, spec)
    canvas = _draw_shapes(rng, spec, canvas)

    owner = np.full((spec.canvas, spec.canvas), -1, dtype=np.int16)  # index of the digit visible at each pixel
    inked: list[int] = []  # pixels of ink of each digit before anything was drawn over it
    boxes = np.zeros((0, 4), dtype=np.int64)
    classes: list[int] = []
    for _ in range(rng.integers(*spec.digits_per_image, endpoint=True)):
        pick = rng.integers(len(samples))
        size = int(rng.integers(*spec.digit_size, endpoint=True))
        alpha = _digit_alpha(samples[pick], size, rng.uniform(-spec.max_rotation, spec.max_rotation))
        placed = _place(rng, spec, alpha, owner, boxes, inked)
        if placed is None:
            continue
        (x, y), owner, boxes = placed
        inked.append(int((alpha >= 0.5).sum()))
        classes.append(int(labels[pick]))
        window = canvas[y : y + alpha.shape[0], x : x + alpha.shape[1]]
        window += alpha[..., None] * (_ink_colour(rng, spec, window) - window)

    sigma = rng.uniform(*spec.noise)
    if sigma > 0:
        channels = rng.choice([1, 3])  # grey or coloured noise
        canvas = canvas + sigma * rng.standard_normal((*canvas.shape[:2], channels), dtype=np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), boxes, np.array(classes, dtype=np.int64)


def overlap_over_smaller(boxes: np.ndarray) -> np.ndarray:
    """(N, N) intersection area / area of the smaller box, for XYXY boxes (N, 4); 1 on the diagonal."""
    top_left = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    return intersection / np.minimum(areas[:, None], areas[None, :])


def _place(
    rng: np.random.Generator,
    spec: DigitsSpec,
    alpha: np.ndarray,
    owner: np.ndarray,
    boxes: np.ndarray,
    inked: list[int],
) -> tuple[tuple[int, int], np.ndarray, np.ndarray] | None:
    """Find a place where all boxes (of what stays visible) respect the bounds: ((x, y), new owner map, new boxes)."""
    height, width = alpha.shape
    ink = alpha >= 0.5
    new = len(boxes)
    for _ in range(_PLACEMENT_TRIALS):
        x = int(rng.integers(spec.canvas - width, endpoint=True))
        y = int(rng.integers(spec.canvas - height, endpoint=True))
        candidate = np.concatenate([boxes, [[x, y, x + width, y + height]]])
        overlaps = overlap_over_smaller(candidate)[new, :new]
        if (overlaps > spec.max_overlap).any():
            continue
        trial = owner.copy()
        trial[y : y + height, x : x + width][ink] = new
        touched = np.flatnonzero(overlaps)
        visible = [np.argwhere(trial == i) for i in touched]
        if any(len(pixels) < spec.min_visible * inked[i] for i, pixels in zip(touched, visible, strict=True)):
            continue
        for i, pixels in zip(touched, visible, strict=True):
            candidate[i] = (*pixels.min(axis=0)[::-1], *(pixels.max(axis=0)[::-1] + 1))
        # A box that shrank has a smaller area, so its overlap with the others may have grown.
        if (overlap_over_smaller(candidate) - np.eye(new + 1) > spec.max_overlap).any():
            continue
        return (x, y), trial, candidate
    return None


def _digit_alpha(sample: np.ndarray, size: int, angle: float) -> np.ndarray:
    """Opacity (h, w) in [0, 1] of an 8 x 8 sample drawn with max(h, w) == size; ink (>= 0.5) touches all four sides."""
    glyph = Image.fromarray((sample * (255 / 16)).astype(np.uint8))
    glyph = glyph.resize((_GLYPH_SIDE, _GLYPH_SIDE), Image.Resampling.BICUBIC)
    glyph = glyph.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    # The samples are soft; a steep ramp around half of full ink turns them into strokes with an edge.
    glyph = glyph.point([min(255, max(0, round((value - 90) * 3))) for value in range(256)])
    glyph = glyph.crop(glyph.point(lambda value: 255 * (value >= 128)).getbbox())
    scale = size / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    alpha = np.asarray(glyph.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    rows, columns = np.flatnonzero((alpha >= 0.5).any(axis=1)), np.flatnonzero((alpha >= 0.5).any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _ink_colour(rng: np.random.Generator, spec: DigitsSpec, under: np.ndarray) -> np.ndarray:
    """A random colour that differs enough from the mean of the pixels (h, w, 3); the farthest of a few if none does."""
    colours = rng.uniform(0, 255, (12, 3)).astype(np.float32)
    contrast = np.sqrt(((colours - under.mean(axis=(0, 1))) ** 2).mean(axis=1))
    enough = np.flatnonzero(contrast >= spec.min_contrast)
    return colours[enough[0] if len(enough) else contrast.argmax()]


def _background(rng: np.random.Generator, spec: DigitsSpec) -> np.ndarray:
    """(H, W, 3) float32."""
    side = spec.canvas
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    y, x = np.mgrid[:side, :side].astype(np.float32) / (side - 1)
    kind = spec.backgrounds[rng.integers(len(spec.backgrounds))]
    if kind == "solid":
        return np.broadcast_to(first, (side, side, 3)).copy()
    if kind == "blotches":
        coarse = rng.uniform(0, 255, (*rng.integers(3, 9, 2), 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)
    if kind == "linear":
        mix = along + 0.5
    elif kind == "radial":
        centre_x, centre_y = rng.uniform(0, 1, 2)
        mix = np.hypot(x - centre_x, y - centre_y) / rng.uniform(0.5, 1.2)
    else:
        second = first + 0.4 * (second - first)  # soft stripes, or they would hide the digits
        mix = 0.5 + 0.5 * np.sin(2 * math.pi * rng.uniform(2, 9) * along + rng.uniform(0, 2 * math.pi))
    return first + mix.clip(0, 1)[..., None] * (second - first)


def _draw_shapes(rng: np.random.Generator, spec: DigitsSpec, canvas: np.ndarray) -> np.ndarray:
    side = spec.canvas * _SUPERSAMPLE
    layer = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.integers(*spec.shapes_per_image, endpoint=True)):
        kind = spec.shapes[rng.integers(len(spec.shapes))]
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        _draw_shape(rng, draw, kind, colour, side, reach=spec.digit_size[1] * _SUPERSAMPLE)
    return np.asarray(layer.reduce(_SUPERSAMPLE), dtype=np.float32).copy()


def _draw_shape(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, kind: str, colour: tuple[int, ...], side: int, reach: int
) -> None:
    """Draw one distractor, at most `reach` pixels across (lines cross the canvas instead)."""
    centre = rng.uniform(0, side, 2)
    half = rng.uniform(0.15, 0.5, 2) * reach
    stroke = int(rng.integers(2, max(4, round(half.min() / 2)), endpoint=True))
    corners = [*(centre - half), *(centre + half)]
    if kind == "line":
        # Long enough to leave the neighbourhood of any digit: a short bar would be a "1".
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.2) * side
        step = 0.5 * length * np.array([math.cos(angle), math.sin(angle)])
        draw.line([*(centre - step), *(centre + step)], fill=colour, width=int(rng.integers(1, 6, endpoint=True)))
    elif kind == "ellipse":
        draw.ellipse(corners, fill=colour)
    elif kind == "rectangle":
        draw.rectangle(corners, fill=colour)
    elif kind == "outline":
        # Rectangles only: the outline of an ellipse would be a "0".
        draw.rectangle(corners, outline=colour, width=stroke)
    elif kind == "polygon":
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 6)))
        points = centre + half * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([tuple(p) for p in points], fill=colour)
    elif kind == "scribble":
        turns = rng.integers(4, 7)  # a zigzag: alternating sides, advancing along the other axis
        across = np.where(np.arange(turns) % 2 == 0, -1.0, 1.0) * rng.uniform(0.5, 1.0, turns)
        points = np.stack([np.linspace(-1, 1, turns), across], axis=1)[:, :: rng.choice([-1, 1])] * half + centre
        draw.line([tuple(p) for p in points], fill=colour, width=stroke, joint="curve")
    else:
        angle = rng.uniform(0, math.pi)
        for turn in (angle, angle + math.pi / 2):
            step = half.mean() * np.array([math.cos(turn), math.sin(turn)])
            draw.line([*(centre - step), *(centre + step)], fill=colour, width=stroke)
