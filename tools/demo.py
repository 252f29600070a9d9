#!/usr/bin/env python
"""Detect objects in images: files or a registered dataset in, drawn PNGs and COCO-format JSON out."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from detrx.analysis import compare_with_truth, contact_sheet, draw_boxes
from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import BoxMode, Instances
from detrx.data import get_detection_dataset_dicts, read_image
from detrx.engine.config import load_config
from detrx.engine.errors import run_tool
from detrx.predictor import Predictor, class_names_of

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Detect objects in images. Writes to the output folder: one PNG per image with its detections "
        "drawn; detections.json with all of them in COCO's result format (boxes XYWH in pixels); and, if asked for, "
        "contact_sheet.png. With --dataset, the ground truth is drawn too, and colours tell right from wrong.",
        epilog="example: demo.py --config-file configs/deformable_detr/deformable_detr_digits.py --weights "
        "output/demo/model_final.pth --dataset digits_val --num 16 --contact-sheet --output output/demo/images",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config that the model was trained with")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint (its averaged weights, if it has any)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="image files, folders of them, or glob patterns")
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, such as digits_val")
    parser.add_argument("--num", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--output", type=Path, default=Path("output/images"), metavar="DIR", help="default: output/images"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S", help="leave out detections below (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--contact-sheet", action="store_true", help="also write all images into contact_sheet.png")
    parser.add_argument("--columns", type=int, default=4, metavar="N", help="of the contact sheet (default: 4)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto, a GPU if there is one)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="key=value", help="changes to the config")
    args = parser.parse_args(argv)
    for name in ("num", "batch_size", "columns"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}")
    return args


def find_images(patterns: list[str]) -> list[Path]:
    """Image files for paths, folders (the images directly in them) and glob patterns, sorted within each of them.

    Raises:
        FileNotFoundError: one of them leads to no image.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor)
            matches = path.iterdir() if path.is_dir() else anchor.glob(str(path.relative_to(anchor)))
            matches = sorted(m for m in matches if m.is_file() and m.suffix.lower() in IMAGE_SUFFIXES)
        if not matches:
            raise FileNotFoundError(f"no image at {pattern}: expected a file, a folder with images or a glob pattern")
        found += matches
    return list(dict.fromkeys(found))


def to_coco(record: dict[str, Any], found: Instances, category_ids: dict[int, int]) -> list[dict[str, Any]]:
    boxes = BoxMode.convert(found.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    return [
        {
            "image_id": record["image_id"],
            "file_name": record["file_name"],
            "category_id": category_ids.get(label, label),
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for box, label, score in zip(boxes, found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    ]


def drawing_of(predictor: Predictor, record: dict[str, Any], found: Instances) -> Image.Image:
    """The image with its detections, compared with the ground truth if the record has it."""
    if "annotations" not in record:
        return predictor.draw(record["file_name"], found)
    truth = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    true_boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth]
    true_boxes = torch.tensor(true_boxes, dtype=torch.float32).reshape(-1, 4)
    true_classes = torch.tensor([a["category_id"] for a in truth], dtype=torch.int64)
    boxes, classes, scores = found.pred_boxes.tensor, found.pred_classes, found.scores
    compared = compare_with_truth(true_boxes, true_classes, boxes, classes, scores, predictor.class_names)
    return draw_boxes(read_image(record["file_name"]), compared)


def find_records(args: argparse.Namespace, cfg: Any) -> tuple[list[dict[str, Any]], str]:
    """What to detect in, as dataset dicts, and the dataset whose classes the model was trained on."""
    if args.dataset:
        return get_detection_dataset_dicts(args.dataset, filter_empty=False), args.dataset
    names = cfg.dataloader.test.dataset.names
    records = [{"file_name": str(file), "image_id": i} for i, file in enumerate(find_images(args.input), start=1)]
    return records, names if isinstance(names, str) else names[0]


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    records, dataset = find_records(args, cfg)
    records = records[: args.num]
    predictor = Predictor.from_config(
        cfg, args.weights, device=args.device, score_threshold=args.score_threshold, batch_size=args.batch_size
    )
    if args.dataset:
        predictor.class_names = class_names_of(dataset)
    ids = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id") or {}
    category_ids = {index: category for category, index in ids.items()}

    args.output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    cells: list[Image.Image] = []
    used: set[str] = set()
    for record, found in tqdm(predictor.stream(records), total=len(records), desc="detecting", unit="img"):
        results += to_coco(record, found, category_ids)
        stem = Path(record["file_name"]).stem
        stem = f"{stem}_{record['image_id']}" if stem in used else stem
        used.add(stem)
        drawing = drawing_of(predictor, record, found)
        drawing.save(args.output / f"{stem}.png")
        if args.contact_sheet:
            cells.append(drawing)
    (args.output / "detections.json").write_text(json.dumps(results, indent=1))
    print(f"{len(results)} detections in {len(records)} images: {args.output}")
    if args.contact_sheet:
        sheet = args.output / "contact_sheet.png"
        title = f"{dataset}: detections with a score of {args.score_threshold:g} or more" if args.dataset else ""
        contact_sheet(cells, args.columns, title, legend=bool(args.dataset)).save(sheet)
        print(f"contact sheet: {sheet}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))


if __name__ == "__main__":
    main()
