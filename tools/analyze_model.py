#!/usr/bin/env python
"""Count the parameters and multiply-adds of a model, and time its inference."""

import argparse
import json
from pathlib import Path

import torch

from detrx.analysis import model_cost
from detrx.engine import run_tool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prints a table of the model's parts: parameters and multiply-adds for one image, and the median "
        "time of inference. Methods are listed, but not part of inference. Weights are random; no dataset is needed.",
        epilog="example: analyze_model.py --config-file configs/deformable_detr/deformable_detr_r50.py --size 800 1333",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"), help="image size (default: 800 1333)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed calls; 0: no timing (default: 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="config overrides")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    height, width = args.size
    cost = model_cost(args.config_file, args.opts, (height, width), args.rounds, args.device)
    print(f"{'part':<14}{'parameters':>14}{'GFLOPs':>10}")
    for name, part in {**cost["parts"], "inference": cost}.items():
        print(f"{name:<14}{part['parameters']:>14,}{part['flops'] / 1e9:>10.3f}")
    if args.rounds:
        print(f"{cost['ms_per_image']:.1f} ms per image of {height}x{width} on {args.device}, {args.rounds} calls")
    if args.json:
        report = {"config": args.config_file, "overrides": args.opts, "size": [height, width], "device": args.device}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**report, "threads": torch.get_num_threads(), **cost}, indent=2) + "\n")
        print(f"figures: {args.json}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))


if __name__ == "__main__":
    main()
