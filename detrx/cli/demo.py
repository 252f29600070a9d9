"""Detect objects in images and videos, and write drawn images and COCO-format JSON."""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from detrx.analysis import compare_with_truth, contact_sheet, draw_boxes
from detrx.analysis.visualize import CELL_WIDTH, fitted
from detrx.atomic import write_atomically
from detrx.cli._command import add_config, add_device, add_overrides, add_weights, at_least, fraction, parse, run_tool
from detrx.cli._demo_files import Drawings, find_files, names_in_dataset
from detrx.coco.results import to_results
from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import BoxMode, Instances
from detrx.data import class_names_of, get_detection_dataset_dicts, read_image
from detrx.data.bad_files import UNREADABLE, BadFiles
from detrx.data.images import annotated_size
from detrx.data.video import VIDEO_SUFFIXES, Video
from detrx.engine.config import load_config
from detrx.predictor import Predictor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Detect objects in images and videos. Writes to the output folder: one PNG per image or frame with "
        "drawn detections; detections.json with all detections in COCO's result format (boxes XYWH in pixels; for a "
        "video also the frame index and the timestamp in seconds); and, on request, contact_sheet.png and drawn "
        "videos. With --dataset, also draws the ground truth, with colours for right, wrong and missed boxes. Files "
        "that cannot be read are named and left out; the exit status is then 1.",
        epilog="example: demo.py --config-file configs/deformable_detr/deformable_detr_digits.py --weights "
        "output/demo/model_final.pth --dataset digits_val --num 16 --contact-sheet --output output/demo/images",
    )
    add_config(parser)
    add_weights(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="image or video files, folders (without their subfolders), or glob patterns",
    )
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, such as digits_val")
    parser.add_argument("--num", type=at_least(1), metavar="N", help="only the first N images and frames")
    parser.add_argument(
        "--every", type=at_least(1), default=1, metavar="N", help="use every N-th frame of a video (default: 1)"
    )
    parser.add_argument(
        "--video-output",
        action="store_true",
        help="also write NAME_detections.mp4 for each video, from its drawn frames",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/images"), metavar="DIR", help="default: output/images"
    )
    parser.add_argument(
        "--score-threshold", type=fraction, default=0.3, metavar="S", help="minimum score (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=1, metavar="N", help="images per call (default: 1)")
    parser.add_argument("--contact-sheet", action="store_true", help="also write all images to contact_sheet.png")
    parser.add_argument(
        "--columns", type=at_least(1), default=4, metavar="N", help="columns of the contact sheet (default: 4)"
    )
    add_device(parser)
    add_overrides(parser)
    return parse(parser, argv)


@dataclass(frozen=True)
class Inputs:
    """
    Attributes:
        dataset: the registered dataset with the class names.
        records: dataset dicts; files have image ids from 1.
        count: number of records; None if a video does not state its length.
        names: what the drawing of each file is called.
        videos: by file name.
    """

    dataset: str
    records: Iterable[dict[str, Any]]
    count: int | None
    names: dict[str, Path]
    videos: dict[str, Video]


def find_inputs(args: argparse.Namespace, cfg: Any, bad: BadFiles) -> Inputs:
    """The images and videos to process."""
    if args.dataset:
        dicts = get_detection_dataset_dicts(args.dataset, filter_empty=False)[: args.num]
        names = names_in_dataset(
            (record["file_name"] for record in dicts), MetadataCatalog.get(args.dataset).get("image_root")
        )
        return Inputs(args.dataset, dicts, len(dicts), names, {})
    datasets = cfg.dataloader.test.dataset.names
    names = {str(file): name for file, name in find_files(args.input).items()}
    videos: dict[str, Video] = {}
    for file in [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]:
        try:
            videos[file] = Video(file, args.every)
        except UNREADABLE as error:
            bad.add(error)
            del names[file]
    records = itertools.islice(_numbered(names, videos, bad), args.num)
    counts = [video.length for video in videos.values()]
    known = [count for count in counts if count is not None]
    total = len(names) - len(videos) + sum(known) if len(known) == len(counts) else None
    count = min((each for each in (total, args.num) if each is not None), default=None)
    return Inputs(datasets if isinstance(datasets, str) else datasets[0], records, count, names, videos)


def _numbered(files: Iterable[str], videos: Mapping[str, Video], bad: BadFiles) -> Iterator[dict[str, Any]]:
    """Dataset dicts of images and of the frames of videos, as far as these can be read; their image ids count them."""
    image_id = itertools.count(1)
    for file in files:
        if file not in videos:
            yield {"file_name": file, "image_id": next(image_id)}
            continue
        try:
            yield from ({**frame, "image_id": next(image_id)} for frame in videos[file])
        except UNREADABLE as error:
            bad.add(error)


def results_of(record: dict[str, Any], found: Instances, category_ids: dict[int, int]) -> list[dict[str, Any]]:
    """Detections in COCO's result format, rounded, each with the file, and of a video with the frame, that it is in."""
    where: dict[str, Any] = {key: record[key] for key in ("file_name", "frame", "timestamp") if key in record}
    return [
        {
            "image_id": result["image_id"],
            **where,
            "category_id": category_ids.get(result["category_id"]) if category_ids else result["category_id"],
            "bbox": [round(value, 2) for value in result["bbox"]],
            "score": round(result["score"], 5),
        }
        for result in to_results(found, record["image_id"])
    ]


def drawing_of(predictor: Predictor, record: dict[str, Any], found: Instances) -> Image.Image:
    """Draw the detections on the image, compared with the ground truth if the record has it."""
    picture = record["image"] if "image" in record else read_image(record["file_name"], annotated_size(record))
    if "annotations" not in record:
        return predictor.draw(picture, found)
    truth = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth]
    true_boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    true_classes = torch.tensor([a["category_id"] for a in truth], dtype=torch.int64)
    boxes, classes, scores = found.pred_boxes.tensor, found.pred_classes, found.scores
    return draw_boxes(
        picture, compare_with_truth(true_boxes, true_classes, boxes, classes, scores, predictor.class_names)
    )


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    bad = BadFiles()
    inputs = find_inputs(args, cfg, bad)
    others = ["detections.json", *(["contact_sheet.png"] if args.contact_sheet else [])]
    drawings = Drawings(args.output, inputs.names, inputs.videos if args.video_output else {}, others)
    predictor = Predictor.from_config(
        cfg, args.weights, device=args.device, score_threshold=args.score_threshold, batch_size=args.batch_size
    )
    if args.dataset:
        predictor.class_names = class_names_of(args.dataset)
    ids = MetadataCatalog.get(inputs.dataset).get("thing_dataset_id_to_contiguous_id") or {}
    category_ids = {index: category for category, index in ids.items()}

    results: list[dict[str, Any]] = []
    cells: list[Image.Image] = []
    done = 0
    with drawings:
        found_in = predictor.stream(inputs.records, skip=bad.add)
        for record, found in tqdm(found_in, total=inputs.count, desc="detecting", unit="img"):
            try:
                drawing = drawing_of(predictor, record, found)
            except UNREADABLE as error:  # it could be read a moment ago
                bad.add(error)
                continue
            results += results_of(record, found, category_ids)
            drawings.write(record, drawing)
            done += 1
            if args.contact_sheet:
                cells.append(fitted(drawing, CELL_WIDTH))
    if done:
        text = json.dumps(results, indent=1)
        write_atomically(args.output / "detections.json", lambda file: file.write(text.encode()))
        print(f"{len(results)} detections in {done} images: {args.output}")
    if cells:
        sheet = args.output / "contact_sheet.png"
        title = f"{args.dataset}: detections with a score of {args.score_threshold:g} or more" if args.dataset else ""
        picture = contact_sheet(cells, args.columns, title, legend=bool(args.dataset))
        write_atomically(sheet, lambda file: picture.save(file, "PNG"))
        print(f"contact sheet: {sheet}")
    bad.raise_any()


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
