"""Score a saved file of detections, without the model."""

import argparse
import math
from pathlib import Path
from typing import Any

from detrx.cli._command import at_least, run_tool, write_json
from detrx.d2.data import MetadataCatalog
from detrx.data.datasets.registered import check_registered
from detrx.data.datasets.sources import missing_file
from detrx.errors import InvalidInputError
from detrx.evaluation.saved import evaluate_file, tables


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score detections in COCO's result format, such as the inference/coco_instances_results.json of a "
        "run, without the model. Prints the tables of an evaluation: AP, AP50, AP75 and AP by size, and average "
        "recall. Annotations of LVIS are scored by its metrics.",
        epilog="example: evaluate_results.py --results output/a/inference/coco_instances_results.json "
        "--dataset digits_val --per-class",
    )
    parser.add_argument("--results", required=True, type=Path, metavar="FILE", help="JSON list of detections")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="registered dataset of the detections")
    source.add_argument("--annotations", type=Path, metavar="FILE", help="annotation file of the dataset")
    parser.add_argument("--per-class", action="store_true", help="also print the AP of every class")
    parser.add_argument(
        "--max-dets",
        type=at_least(1),
        metavar="N",
        help="maximum number of detections per image (default: 100 per class; LVIS: 300)",
    )
    parser.add_argument(
        "--nms",
        type=float,
        metavar="IOU",
        help="apply non-maximum suppression with this IoU threshold first, to measure the effect of duplicates "
        "(default: no NMS)",
    )
    parser.add_argument(
        "--official", action="store_true", help="use pycocotools, even if faster-coco-eval is installed"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the results, including those of each class, to this file"
    )
    return parser.parse_args(argv)


def annotation_file(dataset: str) -> Path:
    check_registered([dataset])
    file = MetadataCatalog.get(dataset).get("json_file")
    if file is None:
        raise InvalidInputError(f"dataset {dataset!r} has no annotation file in COCO's format")
    if not Path(file).is_file():
        raise missing_file(file, dataset=dataset)
    return Path(file)


def without_nan(value: Any) -> Any:
    """Replace NaN by None, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def run(args: argparse.Namespace) -> None:
    annotations = args.annotations or annotation_file(args.dataset)
    report = evaluate_file(args.results, annotations, args.max_dets, not args.official, args.nms)
    print(tables(report, args.per_class))
    if args.json:
        files = {"results": str(args.results), "annotations": str(annotations)}
        write_json(args.json, without_nan({**files, **report}))


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
