"""Detect objects in images and videos, and write drawn images and COCO-format JSON."""

import argparse
import contextlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from detrx.analysis import compare_with_truth, contact_sheet, draw_boxes
from detrx.cli._command import add_config, add_device, add_overrides, add_weights, at_least, fraction, parse, run_tool
from detrx.coco.results import to_results
from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import BoxMode, Instances
from detrx.data import class_names_of, get_detection_dataset_dicts, read_image
from detrx.data.images import IMAGE_SUFFIXES
from detrx.data.video import VIDEO_SUFFIXES, Video, VideoWriter
from detrx.engine.config import load_config
from detrx.predictor import Predictor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Detect objects in images and videos. Writes to the output folder: one PNG per image or frame with "
        "drawn detections; detections.json with all detections in COCO's result format (boxes XYWH in pixels; for a "
        "video also the frame index and the timestamp in seconds); and, on request, contact_sheet.png and drawn "
        "videos. With --dataset, also draws the ground truth, with colours for right, wrong and missed boxes.",
        epilog="example: demo.py --config-file configs/deformable_detr/deformable_detr_digits.py --weights "
        "output/demo/model_final.pth --dataset digits_val --num 16 --contact-sheet --output output/demo/images",
    )
    add_config(parser)
    add_weights(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="image or video files, folders, or glob patterns")
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


def find_files(patterns: list[str]) -> list[Path]:
    """Image and video files for paths, folders (not recursive) and glob patterns, sorted within each of these.

    Raises:
        FileNotFoundError: a path, folder or pattern has no image or video.
    """
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor)
            paths = path.iterdir() if path.is_dir() else anchor.glob(str(path.relative_to(anchor)))
            matches = sorted(p for p in paths if p.is_file() and p.suffix.lower() in suffixes)
        if not matches:
            raise FileNotFoundError(
                f"no image at {pattern}: expected an image or video file, a folder with some or a glob pattern"
            )
        found += matches
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Inputs:
    """
    Attributes:
        dataset: the registered dataset with the class names.
        records: dataset dicts; files have image ids from 1.
        count: number of records; None if a video does not state its length.
        videos: by file name.
    """

    dataset: str
    records: Iterable[dict[str, Any]]
    count: int | None
    videos: dict[str, Video]


def find_inputs(args: argparse.Namespace, cfg: Any) -> Inputs:
    """The images and videos to process."""
    if args.dataset:
        dicts = get_detection_dataset_dicts(args.dataset, filter_empty=False)[: args.num]
        return Inputs(args.dataset, dicts, len(dicts), {})
    names = cfg.dataloader.test.dataset.names
    files = find_files(args.input)
    videos = {str(file): Video(file, args.every) for file in files if file.suffix.lower() in VIDEO_SUFFIXES}
    sources: Iterable[Iterable[dict[str, Any]]] = (videos.get(str(file), [{"file_name": str(file)}]) for file in files)
    numbered = enumerate(itertools.chain.from_iterable(sources), start=1)
    records = itertools.islice(({**record, "image_id": number} for number, record in numbered), args.num)
    counts = [video.length for video in videos.values()]
    known = [count for count in counts if count is not None]
    total = len(files) - len(videos) + sum(known) if len(known) == len(counts) else None
    count = min((each for each in (total, args.num) if each is not None), default=None)
    return Inputs(names if isinstance(names, str) else names[0], records, count, videos)


def results_of(record: dict[str, Any], found: Instances, category_ids: dict[int, int]) -> list[dict[str, Any]]:
    """Detections in COCO's result format, rounded, each with the file, and of a video with the frame, that it is in."""
    where: dict[str, Any] = {key: record[key] for key in ("file_name", "frame", "timestamp") if key in record}
    return [
        {
            "image_id": result["image_id"],
            **where,
            "category_id": category_ids.get(result["category_id"], result["category_id"]),
            "bbox": [round(value, 2) for value in result["bbox"]],
            "score": round(result["score"], 5),
        }
        for result in to_results(found, record["image_id"])
    ]


def drawing_of(predictor: Predictor, record: dict[str, Any], found: Instances) -> Image.Image:
    """Draw the detections on the image, compared with the ground truth if the record has it."""
    annotated = (record["width"], record["height"]) if "width" in record and "height" in record else None
    picture = record["image"] if "image" in record else read_image(record["file_name"], annotated)
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


class Drawings:
    """Writes drawn images to a folder, with unique names, and on request drawn frames to videos."""

    def __init__(self, folder: Path, videos: dict[str, Video]) -> None:
        self.folder, self.videos = folder, videos
        self._names: set[str] = set()
        self._writers: dict[str, VideoWriter] = {}
        self._open = contextlib.ExitStack()

    def write(self, record: dict[str, Any], drawing: Image.Image) -> None:
        file = record["file_name"]
        frame = f"_{record['frame']:06d}" if "frame" in record else ""
        drawing.save(self._path(Path(file).stem + frame, ".png", record))
        if file in self.videos and file not in self._writers:
            path = self._path(f"{Path(file).stem}_detections", ".mp4", record)
            self._writers[file] = self._open.enter_context(VideoWriter(path, self.videos[file].rate))
        if file in self._writers:
            self._writers[file].write(drawing)

    def _path(self, stem: str, suffix: str, record: dict[str, Any]) -> Path:
        name = f"{stem}_{record['image_id']}{suffix}" if stem + suffix in self._names else stem + suffix
        self._names.add(name)
        return self.folder / name

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    inputs = find_inputs(args, cfg)
    predictor = Predictor.from_config(
        cfg, args.weights, device=args.device, score_threshold=args.score_threshold, batch_size=args.batch_size
    )
    if args.dataset:
        predictor.class_names = class_names_of(args.dataset)
    ids = MetadataCatalog.get(inputs.dataset).get("thing_dataset_id_to_contiguous_id") or {}
    category_ids = {index: category for category, index in ids.items()}

    args.output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    cells: list[Image.Image] = []
    done = 0
    with Drawings(args.output, inputs.videos if args.video_output else {}) as drawings:
        for record, found in tqdm(predictor.stream(inputs.records), total=inputs.count, desc="detecting", unit="img"):
            results += results_of(record, found, category_ids)
            drawing = drawing_of(predictor, record, found)
            drawings.write(record, drawing)
            done += 1
            if args.contact_sheet:
                cells.append(drawing)
    (args.output / "detections.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"{len(results)} detections in {done} images: {args.output}")
    if args.contact_sheet:
        sheet = args.output / "contact_sheet.png"
        title = f"{args.dataset}: detections with a score of {args.score_threshold:g} or more" if args.dataset else ""
        contact_sheet(cells, args.columns, title, legend=bool(args.dataset)).save(sheet)
        print(f"contact sheet: {sheet}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
