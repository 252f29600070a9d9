"""Compare the inference speed of detectors."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from detrx.analysis import random_model
from detrx.analysis.benchmark import DTYPES, Setting, benchmark, endless, settings
from detrx.analysis.cost import evaluation_loader
from detrx.analysis.table import print_table
from detrx.cli._command import add_config, add_device, add_overrides, at_least, parse, run_tool, write_json
from detrx.collect_env import machine
from detrx.engine.config import load_config
from detrx.engine.trained import load_model
from detrx.ops import extension_info


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time inference, from images in 0..255 to detections, of one or more configs in every combination "
        "of the settings below. Configs take turns, so that load on the machine affects all of them. Prints a "
        "table with median, 10th and 90th percentile of a call, images per second, and the median relative to the "
        "baseline's. Options marked * may be given several times. The time of routed models (QR-DETR) depends on "
        "weights and images: give --weights and --data-loader.",
        epilog="example: benchmark_model.py --config-file configs/deformable_detr/deformable_detr_r50.py --config-file "
        "configs/dino/dino_r50.py --size 480 640 --size 800 1333 --dtype float32 --dtype bfloat16 --json speed.json",
    )
    add_config(parser, help="* configs to compare", action="append")
    parser.add_argument("--baseline", metavar="FILE", help="one of the config files (default: the first)")
    parser.add_argument(
        "--weights",
        action="append",
        metavar="FILE",
        help="* checkpoints, one per config file (default: random weights)",
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), action="append", metavar="N", help="* images per call (default: 1)"
    )
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="* size of random images (default: 800 1333; with --data-loader: none)",
    )
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="* autocast dtype (default: float32)")
    parser.add_argument(
        "--compile",
        action="append",
        metavar="BACKEND",
        help="* backend of torch.compile, such as inductor; off: not compiled (default: off)",
    )
    parser.add_argument(
        "--data-loader",
        action="store_true",
        help="also time detection on the images of each config's test loader, including reading and resizing, without "
        "workers; needs the dataset",
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=20, metavar="N", help="number of timed calls (default: 20)"
    )
    add_device(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the results, all times and the machine to this file"
    )
    add_overrides(parser, help="config overrides, for all configs")
    args = parse(parser, argv)
    args.baseline = args.baseline or args.config_file[0]
    args.batch_size, args.dtype, args.compile = (
        args.batch_size or [1],
        args.dtype or ["float32"],
        args.compile or ["off"],
    )
    args.size = args.size or ([] if args.data_loader else [[800, 1333]])
    if args.baseline not in args.config_file:
        parser.error(f"--baseline must be one of the config files, got {args.baseline}")
    if len(set(args.config_file)) < len(args.config_file):
        parser.error("--config-file: the same file is given twice")
    if args.weights is not None and len(args.weights) != len(args.config_file):
        parser.error(f"--weights: {len(args.weights)} checkpoints for {len(args.config_file)} config files")
    backends = set(args.compile) - {"off"}
    if unknown := backends and backends - set(torch.compiler.list_backends(exclude_tags=())):
        parser.error(f"--compile: torch has no backend {', '.join(sorted(unknown))}")
    return args


def load_models(args: argparse.Namespace) -> dict[str, nn.Module]:
    if args.weights is None:
        return {file: random_model(file, args.opts, args.device) for file in args.config_file}
    pairs = zip(args.config_file, args.weights, strict=True)
    return {file: load_model(load_config(file, args.opts), weights, args.device) for file, weights in pairs}


def load_batches(args: argparse.Namespace, setting: Setting) -> dict[str, Iterator[Any]] | None:
    if setting.size is not None:
        return None
    batches = {}
    for file in args.config_file:
        loader = evaluation_loader(load_config(file, args.opts), setting.batch_size)
        batches[file] = endless(loader, setting.batch_size)
    return batches


def run(args: argparse.Namespace) -> None:
    models = load_models(args)
    compilers = [None if backend == "off" else backend for backend in args.compile]
    sizes = [(height, width) for height, width in args.size]
    todo = settings(args.batch_size, sizes, args.dtype, compilers, args.data_loader)
    environment = machine(args.device)
    rows = []
    with tqdm(total=len(todo) * len(models) * (args.rounds + 1), unit="call") as bar:
        for setting in todo:
            bar.set_description(str(setting))
            batches = load_batches(args, setting)
            rows += benchmark(models, setting, args.baseline, args.rounds, args.device, batches, bar.update)
    print_table(
        [
            {
                "model": Path(row["model"]).stem,
                "batch": row["batch_size"],
                "size": "loader" if row["size"] is None else "x".join(map(str, row["size"])),
                "dtype": row["dtype"],
                "compiled": row["compiler"] or "-",
                "ms": row["median_ms"],
                "p10": row["p10_ms"],
                "p90": row["p90_ms"],
                "images/s": row["images_per_s"],
                "x baseline": row["times_baseline"],
            }
            for row in rows
        ]
    )
    if args.json:
        report = {
            **environment,
            "extension": extension_info(),
            "device": args.device,
            "overrides": args.opts,
            "baseline": args.baseline,
            "rounds": args.rounds,
            "rows": rows,
        }
        write_json(args.json, report)


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
