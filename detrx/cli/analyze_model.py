"""Count the parameters and multiply-adds of a model, measure its memory and time its inference."""

import argparse
from pathlib import Path

import torch

from detrx.analysis import (
    evaluation_images,
    inference_memory,
    model_cost,
    random_image,
    random_model,
    training_memory,
)
from detrx.cli._command import add_config, add_device, add_overrides, add_size, at_least, parse, run_tool, write_json
from detrx.engine.config import load_config
from detrx.engine.trained import load_model

BOXES_PER_IMAGE = 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Print parameters and multiply-adds for one image, by part of the model; the median time and the "
        "activation memory of inference; and, with --training-batch, the memory of a training step. Methods are "
        "listed, but are not part of inference. By default, weights and the image are random, and no dataset is "
        "needed. Routed models (QR-DETR) need --weights and --images: their costs depend on both.",
        epilog="example: analyze_model.py --config-file configs/deformable_detr/deformable_detr_r50.py --size 800 1333",
    )
    add_config(parser, help="config of the model")
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint (averaged weights are used if it has any; default: random)"
    )
    add_size(parser)
    parser.add_argument(
        "--images",
        type=at_least(1),
        metavar="N",
        help="measure on the first N images of the config's test loader, instead of a random one of --size: the mean "
        "of the multiply-adds, the median of the times, the largest of the memory",
    )
    parser.add_argument(
        "--rounds",
        type=at_least(0),
        default=5,
        metavar="N",
        help="number of timed calls per image; 0: no timing (default: 5)",
    )
    parser.add_argument(
        "--training-batch", type=at_least(0), default=0, metavar="N", help="also measure a training step of N images"
    )
    add_device(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    add_overrides(parser)
    return parse(parser, argv)


def run(args: argparse.Namespace) -> None:
    height, width = args.size
    if args.weights is None:
        model = random_model(args.config_file, args.opts, args.device)
    else:
        model = load_model(load_config(args.config_file, args.opts), args.weights, args.device)
    if args.images is None:
        images, shown = [random_image((height, width), args.device)], f"image of {height}x{width}"
    else:
        images = evaluation_images(load_config(args.config_file, args.opts), args.images, args.device)
        shown = f"image, of the first {len(images)} of the test loader,"
    cost = model_cost(model, images, args.rounds)
    print(f"{'part':<14}{'parameters':>14}{'GFLOPs':>10}")
    for name, part in {**cost["parts"], "inference": cost}.items():
        print(f"{name:<14}{part['parameters']:>14,}{part['flops'] / 1e9:>10.3f}")
    if args.rounds:
        print(f"{cost['ms_per_image']:.1f} ms per {shown} on {args.device}, {args.rounds} calls")
    cost["inference_bytes"] = max(inference_memory(model, image) for image in images)
    print(f"{cost['inference_bytes'] / 2**20:.1f} MiB of activations at the peak of inference")
    if args.training_batch:
        peak = max(training_memory(model, image, args.training_batch, BOXES_PER_IMAGE) for image in images)
        cost |= {"training_bytes": peak, "training_batch": args.training_batch, "boxes_per_image": BOXES_PER_IMAGE}
        print(
            f"{peak / 2**20:.1f} MiB at the peak of a training step of {args.training_batch} such images with "
            f"{BOXES_PER_IMAGE} boxes each: activations, and gradients of the parameters"
        )
    if args.json:
        report = {
            "config": args.config_file,
            "overrides": args.opts,
            "weights": args.weights,
            "images": None if args.images is None else len(images),
            "size": [height, width] if args.images is None else None,
            "device": args.device,
        }
        write_json(args.json, {**report, "threads": torch.get_num_threads(), **cost})


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
