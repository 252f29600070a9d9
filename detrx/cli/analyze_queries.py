"""What the queries of a trained detector do on a dataset: pictures and figures."""

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detrx.analysis.activation import ActivationAnalysis, gini_table
from detrx.analysis.routing import RoutingAnalysis
from detrx.analysis.study import Run, load_study
from detrx.cli._command import run_tool
from detrx.d2.config import instantiate
from detrx.d2.data import MetadataCatalog
from detrx.data import get_detection_dataset_dicts
from detrx.engine import load_config, load_model
from detrx.projects.d3etr.analysis import PairsAnalysis


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs a trained detector over a dataset, one image at a time, and writes pictures (PNG) and "
        "figures (JSON) of what its queries did.",
        epilog="example: analyze_queries.py --routing --weights output/model_final.pth "
        "--config-file projects/qr_detr/configs/qr_deformable_detr_digits.py",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="config that the model was trained with")
    source.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="analyse all runs of a study, which tools/study.py has trained: results are in <variant>/seed<N>/ of the "
        "output, with --activation also a table of the Gini coefficients (gini.json, gini.md)",
    )
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="checkpoint (its averaged weights, if it has any); of a study, the output folder of tools/study.py",
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
    wanted.add_argument(
        "--activation",
        action="store_true",
        help="how often each query is a confident detection, Gini coefficient, Lorenz curve (activation.json, .png); "
        "of pattern queries also the patterns that each class uses, and the images by their weights (patterns.png, "
        "embedding.png)",
    )
    wanted.add_argument(
        "--pairs",
        action="store_true",
        help="D3ETR: which of the teacher's queries adaptive matching pairs each of the student's with, and in how "
        "many images with the same one (pairs.json, pairs.png)",
    )
    parser.add_argument(
        "--cost-images",
        type=int,
        default=10,
        metavar="N",
        help="with --routing: images whose multiply-adds are counted (default: 10)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="with --activation: least score of a confident detection (default: 0.5)",
    )
    args = parser.parse_args(argv)
    if not (args.routing or args.activation or args.pairs):
        parser.error("say what to analyse: --routing, --activation, --pairs, or some of them")
    if args.study and args.opts:
        parser.error("--opts: a study has its overrides in its file")
    if args.num is not None and args.num < 1:
        parser.error(f"--num must be 1 or more, got {args.num}")
    if args.cost_images < 0:
        parser.error(f"--cost-images must be 0 or more, got {args.cost_images}")
    return args


@torch.no_grad()
def analyse(args: argparse.Namespace, config: str, overrides: list[str], weights: str, output: Path) -> dict[str, Any]:
    """Run the analyses of one checkpoint, and return them by name."""
    cfg = load_config(config, overrides)
    names = cfg.dataloader.test.dataset.names
    dataset = args.dataset or (names if isinstance(names, str) else names[0])
    records = get_detection_dataset_dicts(dataset, filter_empty=False)[: args.num]
    model = load_model(cfg, weights, args.device)
    mapper = instantiate(cfg.dataloader.test.mapper)
    analyses: dict[str, Any] = {}
    if args.routing:
        analyses["routing"] = RoutingAnalysis(model, cfg.model, args.cost_images)
    if args.activation:
        class_names = MetadataCatalog.get(dataset).get("thing_classes") or []
        analyses["activation"] = ActivationAnalysis(model, class_names, args.score_threshold)
    if args.pairs:
        analyses["pairs"] = PairsAnalysis(model)
    for record in tqdm(records, desc="analysing", unit="img"):
        inputs = mapper(record)
        (result,) = model([inputs])
        for analysis in analyses.values():
            analysis.observe(inputs, result["instances"])
    output.mkdir(parents=True, exist_ok=True)
    for analysis in analyses.values():
        print(analysis.write(output))
    return analyses


def run(args: argparse.Namespace) -> None:
    if not args.study:
        analyse(args, args.config_file, args.opts, args.weights, args.output)
        return
    study = load_study(args.study)
    coefficients: dict[str, dict[int, float]] = {}
    for variant in study.variants:
        for seed in study.seeds:
            weights = Run(variant, seed, Path(args.weights)).folder / "model_final.pth"
            output = Run(variant, seed, args.output).folder
            print(f"{variant.name}, seed {seed}")
            analyses = analyse(args, variant.config, list(variant.overrides), str(weights), output)
            if args.activation:
                coefficients.setdefault(variant.name, {})[seed] = analyses["activation"].gini
    if args.activation:
        print(gini_table(coefficients, args.output))


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
