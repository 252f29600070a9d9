"""Count the parameters and multiply-adds of a model, measure its memory and time its inference."""

import argparse
from pathlib import Path

import torch

from detrx.analysis import inference_memory, model_cost, random_image, random_model, training_memory
from detrx.cli._command import add_config, add_device, add_overrides, add_size, at_least, parse, run_tool, write_json

BOXES_PER_IMAGE = 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Print parameters and multiply-adds for one image, by part of the model; the median time and the "
        "activation memory of inference; and, with --training-batch, the memory of a training step. Methods are "
        "listed, but are not part of inference. Weights are random; no dataset is needed.",
        epilog="example: analyze_model.py --config-file configs/deformable_detr/deformable_detr_r50.py --size 800 1333",
    )
    add_config(parser, help="config of the model")
    add_size(parser)
    parser.add_argument(
        "--rounds", type=at_least(0), default=5, metavar="N", help="number of timed calls; 0: no timing (default: 5)"
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
    model, image = random_model(args.config_file, args.opts, args.device), random_image((height, width), args.device)
    cost = model_cost(model, image, args.rounds)
    print(f"{'part':<14}{'parameters':>14}{'GFLOPs':>10}")
    for name, part in {**cost["parts"], "inference": cost}.items():
        print(f"{name:<14}{part['parameters']:>14,}{part['flops'] / 1e9:>10.3f}")
    if args.rounds:
        print(f"{cost['ms_per_image']:.1f} ms per image of {height}x{width} on {args.device}, {args.rounds} calls")
    cost["inference_bytes"] = inference_memory(model, image)
    print(f"{cost['inference_bytes'] / 2**20:.1f} MiB of activations at the peak of inference")
    if args.training_batch:
        peak = training_memory(model, image, args.training_batch, BOXES_PER_IMAGE)
        cost |= {"training_bytes": peak, "training_batch": args.training_batch, "boxes_per_image": BOXES_PER_IMAGE}
        print(
            f"{peak / 2**20:.1f} MiB at the peak of a training step of {args.training_batch} such images with "
            f"{BOXES_PER_IMAGE} boxes each: activations, and gradients of the parameters"
        )
    if args.json:
        report = {"config": args.config_file, "overrides": args.opts, "size": [height, width], "device": args.device}
        write_json(args.json, {**report, "threads": torch.get_num_threads(), **cost})


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
