"""Images with ground truth and detections, small enough to be part of a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from detrx.analysis.visualize import draw_boxes
from detrx.data import read_image
from detrx.data.bad_files import UNREADABLE, BadFiles
from detrx.data.images import annotated_size

from .detection_statistics import DetectionStatistics, ImageCount, boxes_to_draw
from .detections import Absent, Detections

LONGEST_SIDE = 560
QUALITY = 72


@dataclass(frozen=True)
class EmbeddedImage:
    """An image for the page: `data` is a data URL, `caption` has the counts, `width` and `height` are in pixels."""

    data: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class ExampleImages:
    """Some images of the dataset, those with most wrong detections, and those with most missed objects."""

    sample: list[EmbeddedImage]
    wrong: list[EmbeddedImage]
    missed: list[EmbeddedImage]


def draw_examples(
    figures: DetectionStatistics, score_threshold: float, bad: BadFiles, sample: int = 12, worst: int = 8
) -> ExampleImages | Absent:
    """Draw `sample` images, evenly spread over the dataset, and twice at most `worst` of the worst ones.

    Images that cannot be read are left out, and go into `bad`; without any other, the examples are absent.
    """
    counts = figures.images
    step = max(1, len(counts) // sample)
    most_wrong = sorted((each for each in counts if each.wrong), key=lambda each: -each.wrong)
    most_missed = sorted((each for each in counts if each.missed), key=lambda each: -each.missed)
    drawn: dict[Any, EmbeddedImage | None] = {}
    known = len(bad.errors)

    def draw(chosen: Sequence[ImageCount]) -> list[EmbeddedImage]:
        for each in chosen:
            if each.image_id not in drawn:
                try:
                    drawn[each.image_id] = _draw(figures.detections, each, score_threshold)
                except UNREADABLE as error:
                    bad.add(error)
                    drawn[each.image_id] = None
        pictures = (drawn[each.image_id] for each in chosen)
        return [picture for picture in pictures if picture is not None]

    examples = ExampleImages(draw(counts[::step][:sample]), draw(most_wrong[:worst]), draw(most_missed[:worst]))
    if drawn and not any(drawn.values()):
        return Absent(f"The images cannot be drawn: {bad.errors[known]}.")
    return examples


def _draw(found: Detections, count: ImageCount, score_threshold: float) -> EmbeddedImage:
    record = found.dataset.records[count.image_id]
    file = record["file_name"]
    image = read_image(file, annotated_size(record))  # in the frame that the boxes are in
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    boxes = boxes_to_draw(found, count.image_id, score_threshold)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        boxes = [box.scaled(scale) for box in boxes]
    drawn = draw_boxes(image, boxes, min_side=min(400, LONGEST_SIDE * min(image.size) // max(image.size)))
    return EmbeddedImage(data_url(drawn), _caption(Path(file).name, count), drawn.width, drawn.height)


def data_url(image: Image.Image) -> str:
    """The image as WebP, or as JPEG where Pillow was built without it."""
    from PIL import features

    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _caption(name: Any, count: ImageCount) -> str:
    shown = str(name).encode("utf-8", "backslashreplace").decode()  # names of files can be no text
    return f"{shown}: {count.correct} correct, {count.wrong} wrong, {count.missed} missed"
