#!/usr/bin/env python
"""What the queries of a trained detector do on a dataset: pictures and figures."""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from detrx.analysis.routing import RoutingAnalysis
from detrx.d2.config import instantiate
from detrx.data import get_detection_dataset_dicts
from detrx.engine import load_config, load_model, run_tool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs a trained detector over a dataset, one image at a time, and writes pictures (PNG) and "
        "figures (JSON) of what its queries did.",
        epilog="example: analyze_queries.py --routing --weights output/model_final.pth "
        "--config-file projects/qr_detr/configs/qr_deformable_detr_digits.py",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config that the model was trained with")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint (its averaged weights, if it has any)"
    )
    parser.add_argument("--dataset", metavar="NAME", help="registered dataset (default: the config's test dataset)")
    parser.add_argument("--num", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--output", type=Path, default=Path("output/queries"), metavar="DIR")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto, a GPU if there is one)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="key=value", help="changes to the config")
    wanted = parser.add_argument_group("analyses, at least one")
    wanted.add_argument(
        "--routing",
        action="store_true",
        help="QR-DETR: how many queries each layer's router lets pass (routing.json, routing.png), and multiply-adds",
    )
    parser.add_argument(
        "--cost-images",
        type=int,
        default=10,
        metavar="N",
        help="with --routing: images whose multiply-adds are counted (default: 10)",
    )
    args = parser.parse_args(argv)
    if not args.routing:
        parser.error("say what to analyse: --routing")
    if args.num is not None and args.num < 1:
        parser.error(f"--num must be 1 or more, got {args.num}")
    if args.cost_images < 0:
        parser.error(f"--cost-images must be 0 or more, got {args.cost_images}")
    return args


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    names = cfg.dataloader.test.dataset.names
    dataset = args.dataset or (names if isinstance(names, str) else names[0])
    records = get_detection_dataset_dicts(dataset, filter_empty=False)[: args.num]
    model = load_model(cfg, args.weights, args.device)
    mapper = instantiate(cfg.dataloader.test.mapper)
    analyses = []
    if args.routing:
        analyses.append(RoutingAnalysis(model, cfg.model, args.cost_images))
    for record in tqdm(records, desc="analysing", unit="img"):
        inputs = mapper(record)
        (output,) = model([inputs])
        for analysis in analyses:
            analysis.observe(inputs, output["instances"])
    args.output.mkdir(parents=True, exist_ok=True)
    for analysis in analyses:
        print(analysis.write(args.output))


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))


if __name__ == "__main__":
    main()
