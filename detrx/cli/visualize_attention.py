"""Draw what the queries of trained detectors attend to, for several models side by side."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detrx.analysis.attention import choose_queries, look_at
from detrx.analysis.attention_figure import BOXES, Row, draw_attention
from detrx.atomic import write_atomically
from detrx.cli._command import add_config, add_device, add_overrides, at_least, parse, run_tool
from detrx.d2.config import instantiate
from detrx.data import class_names_of, get_detection_dataset_dicts
from detrx.data.bad_files import UNREADABLE, BadFiles
from detrx.engine import load_config, load_model
from detrx.errors import InvalidInputError
from detrx.modeling import DetectionTransformer, Targets, as_detection_transformer
from detrx.modeling.cross_attention import MAP_PARTS


def numbers(text: str) -> list[int]:
    """Argument type: whole numbers, 0 or more, with commas between them."""
    found = [int(each) for each in text.split(",")]
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return found


numbers.__name__ = "list of numbers"  # for argparse's message "invalid list of numbers value"


def queries(text: str) -> str | list[int]:
    """Argument type: "truth", "best", or indices of queries."""
    return text if text in ("truth", "best") else numbers(text)


queries.__name__ = "truth, best or list of numbers"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw what queries attend to in a decoder layer: maps of dense cross-attention over the image, or "
        "the sampling points of deformable attention, larger and brighter the more they weigh. Writes one PNG for each "
        "image, with a row for each query and model and a column for each head. Images that cannot be read are named "
        "and left out; the exit status is then 1.",
        epilog="example, a student without and with distillation and its teacher: visualize_attention.py "
        "--config-file conditional_detr/conditional_detr_r50 --weights student.pth "
        "--config-file d3etr/d3etr_conditional_detr_r50 --weights distilled.pth "
        "--config-file conditional_detr/conditional_detr_r101_50ep --weights teacher.pth "
        "--names student distilled teacher --heads 0,1,2,3",
    )
    add_config(parser, help="config of a model, once for each model", action="append")
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="FILE",
        help="checkpoint, once for each config and in their order (averaged weights are used if it has any)",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the models (default: of the configs)")
    parser.add_argument(
        "--dataset", metavar="NAME", help="registered dataset (default: the test dataset of the first config)"
    )
    parser.add_argument("--num", type=at_least(1), default=4, metavar="N", help="the first N images (default: 4)")
    parser.add_argument("--images", metavar="ID,...", help="the images with these ids instead")
    parser.add_argument(
        "--queries",
        type=queries,
        default="truth",
        metavar="WHICH",
        help="truth: those that are matched with ground-truth boxes; best: those with the highest scores; or indices, "
        "such as 3,17 (default: truth)",
    )
    parser.add_argument(
        "--most", type=at_least(1), default=3, metavar="N", help="queries of an image, unless by index (default: 3)"
    )
    parser.add_argument("--layer", type=int, default=-1, metavar="L", help="decoder layer (default: -1, the last)")
    parser.add_argument("--heads", type=numbers, metavar="H,...", help="such as 0,1,2,3 (default: all)")
    parser.add_argument(
        "--map",
        choices=MAP_PARTS,
        default="spatial",
        help="part of a dense attention map: the comparison of places alone, as Conditional DETR and D3ETR show it, of "
        "contents alone, or both, as in the model (default: spatial)",
    )
    parser.add_argument("--boxes", choices=BOXES, default="truth", help="boxes to draw (default: truth)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/attention"), metavar="DIR", help="default: output/attention"
    )
    add_device(parser)
    add_overrides(parser, help="overrides of all configs")
    args = parse(parser, argv)
    if len(args.weights) != len(args.config_file):
        parser.error(f"{len(args.config_file)} times --config-file, but {len(args.weights)} times --weights")
    if args.names and len(args.names) != len(args.config_file):
        parser.error(f"argument --names: {len(args.names)} names for {len(args.config_file)} models")
    return args


def find_records(dataset: str, num: int, image_ids: str | None) -> list[dict[str, Any]]:
    """Dataset dicts of the first images, or of those with some ids (with commas between them), in their order.

    Raises:
        ValueError: an image does not exist.
    """
    records = get_detection_dataset_dicts(dataset, filter_empty=False)
    if image_ids is None:
        return records[:num]
    by_id, wanted = {str(record["image_id"]): record for record in records}, image_ids.split(",")
    if missing := [each for each in wanted if each not in by_id]:
        raise InvalidInputError(f"dataset {dataset} has no images with the ids {', '.join(missing)}")
    return [by_id[each] for each in wanted]


def rows_of(
    models: Sequence[tuple[str, DetectionTransformer]], samples: Sequence[dict[str, Any]], args: argparse.Namespace
) -> list[Row]:
    """The rows of an image: the queries one after the other, and each for all models."""
    of_models: list[dict[int, Row]] = []
    for (name, model), sample in zip(models, samples, strict=True):
        look = look_at(model, sample, args.layer, args.map)
        chosen = choose_queries(model, look, sample, args.queries, args.most)
        # those of the same object, or else of the same place in the order, belong together
        of_models.append(
            {place if each.truth is None else each.truth: Row(name, look, each) for place, each in enumerate(chosen)}
        )
    return [rows[key] for key in sorted(set().union(*of_models)) for rows in of_models if key in rows]


def run(args: argparse.Namespace) -> None:
    names = args.names or [Path(each).stem for each in args.config_file]
    configs = [load_config(each, args.opts) for each in args.config_file]
    datasets = configs[0].dataloader.test.dataset.names
    dataset = args.dataset or (datasets if isinstance(datasets, str) else datasets[0])
    records = find_records(dataset, args.num, args.images)
    models, mappers = [], []
    for name, cfg, weights in zip(names, configs, args.weights, strict=True):
        models.append((name, as_detection_transformer(load_model(cfg, weights, args.device))))
        cfg.dataloader.test.mapper.is_train = True  # adds the ground truth
        mappers.append(instantiate(cfg.dataloader.test.mapper))
    args.output.mkdir(parents=True, exist_ok=True)
    bad, without = BadFiles(), 0
    for record in tqdm(records, desc="drawing", unit="img"):
        try:
            samples = [mapper(record) for mapper in mappers]
        except UNREADABLE as error:
            bad.add(error)
            continue
        rows = rows_of(models, samples, args)
        if not rows:
            without += 1
            continue
        truth = Targets.from_instances([samples[0]["instances"]], [record["image_id"]], torch.device("cpu"))
        figure = draw_attention(
            samples[0]["image"], rows, args.heads, truth.boxes[0], args.boxes, class_names_of(dataset)
        )
        name = re.sub(r"[^\w.-]+", "_", str(record["image_id"]))
        write_atomically(args.output / f"{name}.png", partial(figure.savefig, format="png"))
    drawn = len(records) - without - len(bad.errors)
    print(f"{drawn} images in {args.output}" + (f"; {without} have no object to draw queries of" if without else ""))
    bad.raise_any()


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
