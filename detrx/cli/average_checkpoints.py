"""Average the weights of several checkpoints of a run into one file for train.init_checkpoint."""

import argparse
from pathlib import Path

from detrx.checkpoint import CheckpointError, average_checkpoints, last_checkpoints, write_weights
from detrx.checkpoint.files import WEIGHT_SUFFIXES
from detrx.cli._command import at_least, run_tool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write the mean of the weights of several checkpoints of one model. Averaged (EMA) weights are "
        "used if all checkpoints have them. Evaluate the written file with "
        "lazyconfig_train_net.py --config-file CONFIG --eval-only train.init_checkpoint=FILE.",
        epilog="example: average_checkpoints.py output/a --last 5 --output output/a/average.pth",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="checkpoints (.pth, .safetensors), or the output folder of one run with --last",
    )
    parser.add_argument("--last", type=at_least(1), metavar="N", help="average the last N checkpoints of the folder")
    parser.add_argument(
        "--factors", nargs="+", type=float, metavar="F", help="weight of each checkpoint, oldest first (default: equal)"
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="require averaged (EMA) weights, or use the trained ones (default: averaged if all checkpoints have them)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help=f"file to write: {' or '.join(WEIGHT_SUFFIXES)}"
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in WEIGHT_SUFFIXES:
        parser.error(f"--output must end in {' or '.join(WEIGHT_SUFFIXES)}, got {args.output}")
    return args


def checkpoints(args: argparse.Namespace) -> list[Path]:
    folders = [source for source in args.sources if source.is_dir()]
    if not folders and args.last is None:
        return args.sources
    if len(args.sources) != 1 or not folders or args.last is None:
        raise CheckpointError("give checkpoints, or one folder and --last N")
    return last_checkpoints(folders[0], args.last)


def run(args: argparse.Namespace) -> None:
    paths = checkpoints(args)
    weights = average_checkpoints(paths, args.factors, args.ema)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_weights(args.output, weights)
    print("\n".join(f"averaged: {path}" for path in paths))
    print(f"{len(weights)} tensors, {sum(t.numel() for t in weights.values()) / 1e6:.1f} M numbers: {args.output}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
