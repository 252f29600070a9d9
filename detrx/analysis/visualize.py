"""Drawing boxes on images, and sheets of many images, legible for small images too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from detrx.d2.structures import Boxes, pairwise_iou
from detrx.errors import InvalidInputError
from detrx.evaluation.greedy import match_greedily

CORRECT, WRONG, MISSED, TRUTH = "#2ee64d", "#ff3b30", "#ffd60a", "#ffffff"
LEGEND = (
    ("ground truth", TRUTH, False),
    ("correct detection", CORRECT, False),
    ("wrong detection", WRONG, False),
    ("missed object", MISSED, True),
)
MOST_TIMES = 8
"""The longer side of an image, in terms of the shorter, up to which drawings are as large as their shorter side asks
for: an image of 4000 x 2 pixels would otherwise become one of 960,000 x 480."""
CELL_WIDTH = 400
"""Of an image in a contact sheet, in pixels."""
_PAPER = "#1c1c1e"
_PALETTE = (
    "#2ee64d",
    "#ff9f0a",
    "#0a84ff",
    "#ff375f",
    "#bf5af2",
    "#64d2ff",
    "#ffd60a",
    "#ff6961",
    "#30d5c8",
    "#c8a06e",
)


@dataclass(frozen=True)
class Box:
    """One box to draw: XYXY in pixels of the image; no label if empty; `colour` is anything that Pillow understands."""

    xyxy: tuple[float, float, float, float]
    label: str = ""
    colour: str = CORRECT
    dashed: bool = False
    thin: bool = False

    def scaled(self, factor: float) -> "Box":
        """The box in its image enlarged by a factor."""
        x1, y1, x2, y2 = self.xyxy
        return replace(self, xyxy=(factor * x1, factor * y1, factor * x2, factor * y2))


def class_colour(index: int) -> str:
    """A colour for a class; they repeat after ten."""
    return _PALETTE[index % len(_PALETTE)]


def class_name(index: int, names: Sequence[str]) -> str:
    """Name of a class; its number, if there is none."""
    return str(names[index]) if 0 <= index < len(names) else str(index)


def draw_boxes(image: Image.Image, boxes: Sequence[Box], min_side: int = 480) -> Image.Image:
    """A copy of an RGB image with boxes, enlarged by a whole factor until its shorter side has `min_side` pixels, or
    until its longer side would have more than `MOST_TIMES` times as many."""
    factor = max(1, min(math.ceil(min_side / min(image.size)), MOST_TIMES * min_side // max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    width = max(2, round(min(canvas.size) / 200))
    size = max(12, round(min(canvas.size) / 30))
    font: ImageFont.FreeTypeFont = ImageFont.load_default(size)  # type: ignore[assignment]  # it is one, with a size
    corners = [_upper_left_first([factor * value for value in box.xyxy]) for box in boxes]
    for box, xyxy in zip(boxes, corners, strict=True):
        # Grown by the width of the line, so that the line runs around the object instead of over it.
        grown = [xyxy[0] - width, xyxy[1] - width, xyxy[2] + width - 1, xyxy[3] + width - 1]
        if box.dashed:
            _dashed_rectangle(draw, grown, box.colour, width)
        else:
            draw.rectangle(grown, outline=box.colour, width=max(1, width // 2) if box.thin else width)
    for box, xyxy in zip(boxes, corners, strict=True):  # labels after all boxes, so that no line crosses them
        if box.label:
            _tag(draw, box.label, xyxy, box.colour, font, canvas.size, width)
    return canvas


def captioned(image: Image.Image, text: str) -> Image.Image:
    """An image with a line of text under it; its beginning is left out where it does not fit."""
    font, height = ImageFont.load_default(size=16), 26
    shown = _drawable(text)
    while len(shown) > 3 and font.getlength(shown) > image.width - 8:
        shown = "..." + shown.removeprefix("...")[1:]
    sheet = Image.new("RGB", (image.width, image.height + height), _PAPER)
    sheet.paste(image, (0, 0))
    ImageDraw.Draw(sheet).text((4, image.height + height / 2), shown, fill="white", font=font, anchor="lm")
    return sheet


def compare_with_truth(
    true_boxes: torch.Tensor,
    true_classes: torch.Tensor,
    pred_boxes: torch.Tensor,
    pred_classes: torch.Tensor,
    scores: torch.Tensor,
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
) -> list[Box]:
    """Match detections to the ground truth, and mark each box as correct, wrong or missed.

    As in average precision, detections claim ground truth of their class in the order of their scores, each the
    unclaimed one that it overlaps most, if their IoU reaches the threshold. Unclaimed ground truth is missed.

    Args:
        true_boxes, pred_boxes: (N, 4) and (M, 4) XYXY in pixels.
        true_classes, pred_classes: (N,) and (M,) indices into `class_names`; classes beyond these are called by their
            number.
        scores: (M,).

    Returns:
        Ground truth first, then missed objects, then detections by rising score, so that the best is on top.
    """
    order = scores.argsort(descending=True, stable=True)
    ious = pairwise_iou(Boxes(pred_boxes[order].float()), Boxes(true_boxes.float()))
    own_class = pred_classes[order, None] == true_classes[None, :]
    taken = match_greedily(torch.where(own_class & (ious >= iou_threshold), ious, -1.0).numpy())
    found = np.isin(np.arange(len(true_boxes)), taken).tolist()
    detections = []
    for i, right in zip(order.tolist(), (taken >= 0).tolist(), strict=True):
        label = f"{class_name(int(pred_classes[i]), class_names)} {float(scores[i]):.2f}"
        detections.append(Box(tuple(pred_boxes[i].tolist()), label, CORRECT if right else WRONG))
    truth = [
        Box(tuple(box), colour=TRUTH, thin=True)
        if hit
        else Box(tuple(box), class_name(int(label), class_names), MISSED, dashed=True)
        for box, label, hit in zip(true_boxes.tolist(), true_classes, found, strict=True)
    ]
    return sorted(truth, key=lambda box: box.dashed) + detections[::-1]


def contact_sheet(
    cells: Sequence[Image.Image], columns: int = 4, title: str = "", legend: bool = True, cell_width: int = CELL_WIDTH
) -> Image.Image:
    """Images in a grid, row by row, each scaled to the width of a cell (see `fitted`), under a title and the legend of
    `compare_with_truth`."""
    if not cells:
        raise InvalidInputError("a contact sheet needs at least one image")
    gap = 8
    columns = min(columns, len(cells))
    cells = [fitted(cell, cell_width) for cell in cells]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    head = _header(columns * (cell_width + gap) + gap, title, LEGEND if legend else ())
    sheet = Image.new("RGB", (head.width, head.height + sum(heights) + gap * len(rows)), _PAPER)
    sheet.paste(head, (0, 0))
    top = head.height
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (cell_width + gap), top))
        top += height + gap
    return sheet


def fitted(image: Image.Image, width: int) -> Image.Image:
    """An image scaled to `width`; one that would become more than four times as high as wide is scaled to this height,
    and put into the middle."""
    scale = min(width / image.width, 4 * width / image.height)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    scaled = image.resize(size, Image.Resampling.LANCZOS)
    if scaled.width == width:
        return scaled
    sheet = Image.new("RGB", (width, scaled.height), _PAPER)
    sheet.paste(scaled, ((width - scaled.width) // 2, 0))
    return sheet


def _drawable(text: str) -> str:
    """Text in one line: names of classes and files can have line breaks, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _upper_left_first(xyxy: Sequence[float]) -> list[float]:
    """A box whose second corner is not above or left of the first: annotations can have a negative width."""
    x1, y1, x2, y2 = xyxy
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _header(width: int, title: str, legend: Sequence[tuple[str, str, bool]]) -> Image.Image:
    """Title and legend, on one line if both fit; wider than `width` if the legend alone needs it."""
    title, title_font, font = _drawable(title), ImageFont.load_default(size=26), ImageFont.load_default(size=22)
    swatch, gap, line = 34, 16, 48
    title_width = math.ceil(title_font.getlength(title)) + 2 * gap if title else 0
    legend_width = sum(swatch + 8 + math.ceil(font.getlength(text)) + 2 * gap for text, _, _ in legend)
    width = max(width, title_width, legend_width + gap)
    two_lines = title_width + legend_width > width
    height = 8 if not (title or legend) else 2 * line if two_lines else line
    head = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(head)
    draw.text((gap, line / 2), title, fill="white", font=title_font, anchor="lm")
    x, y = (gap, 1.5 * line) if two_lines else (width - legend_width, line / 2)
    for text, colour, dashed in legend:
        box = [x, y - 11, x + swatch, y + 11]
        if dashed:
            _dashed_rectangle(draw, box, colour, 3)
        else:
            draw.rectangle(box, outline=colour, width=3)
        draw.text((x + swatch + 8, y), text, fill="white", font=font, anchor="lm")
        x += swatch + 8 + math.ceil(font.getlength(text)) + 2 * gap
    return head


def _dashed_rectangle(draw: ImageDraw.ImageDraw, xyxy: Sequence[float], colour: str, width: int) -> None:
    x1, y1, x2, y2 = xyxy
    dash = 3 * width
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = math.dist(start, end)
        for offset in range(0, math.ceil(length), 2 * dash):
            points = [
                tuple(a + (b - a) * min(1.0, position / length) for a, b in zip(start, end, strict=True))
                for position in (offset, offset + dash)
            ]
            draw.line(points, fill=colour, width=width)


def _tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    xyxy: Sequence[float],
    colour: str,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    line: int,
) -> None:
    """Text on a plate, above the box if there is room, else below it; never outside the image."""
    text = _drawable(text)
    width, height = font.getlength(text) + 6, font.size + 4
    x = min(max(0, xyxy[0] - line), size[0] - width)
    y = xyxy[1] - line - height
    if y < 0:
        y = min(xyxy[3] + line, size[1] - height)
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    draw.text((x + 3, y + height / 2), text, fill="black", font=font, anchor="lm")
