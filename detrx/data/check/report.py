"""What was found out about a dataset, as text for a terminal."""

from __future__ import annotations

from typing import Any

from detrx.coco.problems import printable

from .dataset import CheckedDataset

__all__ = ["as_text"]

_CLASSES_SHOWN = 30


def as_text(dataset: CheckedDataset) -> str:
    """Statistics, a histogram of the classes (the most frequent ones, if there are many), errors and warnings."""
    lines = [f"dataset      {printable(dataset.name)}"]
    lines += [f"annotations  {dataset.json_file}"] if dataset.json_file not in (None, dataset.name) else []
    lines += [f"images in    {dataset.image_root}"] if dataset.image_root else []
    return "\n".join(
        [*lines, "", *_numbers(dataset.statistics), "", *_classes(dataset.statistics), "", *_found(dataset)]
    )


def _numbers(numbers: dict[str, Any]) -> list[str]:
    def share(part: int, whole: int) -> str:
        return f"{part:,} ({100 * part / whole:.1f} %)" if whole else "0"

    def spread(values: dict[str, float | None]) -> str:
        if values["min"] is None:
            return "-"
        return ", ".join(f"{key} {value:.4g}" for key, value in values.items())

    boxes = numbers["boxes"]
    by_size = {
        "small (< 32² px)": numbers["boxes_by_size"]["small"],
        "medium": numbers["boxes_by_size"]["medium"],
        "large (>= 96² px)": numbers["boxes_by_size"]["large"],
    }
    rows = {
        "images": f"{numbers['images']:,}",
        "  without boxes": share(numbers["images_without_boxes"], numbers["images"]),
        "  width": spread(numbers["image_size"]["width"]),
        "  height": spread(numbers["image_size"]["height"]),
        "boxes": f"{boxes:,}, and {numbers['crowds']:,} crowds",
        "  per image": spread(numbers["boxes_per_image"]),
        **{f"  {size}": share(count, boxes) for size, count in by_size.items()},
        "  √area, px": spread(numbers["box_side"]),
        "classes": f"{len(numbers['classes']):,}, of which {len(numbers['classes_without_boxes']):,} have no boxes",
    }
    return [f"{key:<19}  {value}" for key, value in rows.items()]


def _classes(numbers: dict[str, Any]) -> list[str]:
    classes = numbers["classes"]
    shown = classes
    if len(classes) > _CLASSES_SHOWN:
        shown = sorted(classes, key=lambda entry: -entry["boxes"])[:_CLASSES_SHOWN]
    names = [printable(entry["name"]) for entry in shown]
    width = max([len("class"), *map(len, names)])
    lines = [f"{'class':<{width}}  {'boxes':>10}  {'images':>10}"]
    for name, entry in zip(names, shown, strict=True):
        lines.append(f"{name:<{width}}  {entry['boxes']:>10,}  {entry['images']:>10,}")
    if len(shown) < len(classes):
        lines.append(f"... and {len(classes) - len(shown)} classes with fewer boxes")
    return lines if classes else []


def _found(dataset: CheckedDataset) -> list[str]:
    lines = []
    for entry in dataset.findings.entries():
        lines.append(f"{entry['severity']:<8} {entry['count']:>8,}  {entry['meaning']}  [{entry['kind']}]")
        lines += [f"{'':<18} {example}" for example in entry["examples"]]
        hidden = entry["count"] - len(entry["examples"])
        lines += [f"{'':<18} and {hidden:,} more"] if hidden else []
    return [*lines, ""] if lines else []
