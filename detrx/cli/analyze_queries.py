"""Analyse what the queries of a trained detector do on a dataset."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detrx.analysis.queries import QueryAnalysis, Subject, query_analyses
from detrx.analysis.study import Run, load_study
from detrx.cli._command import add_config, add_device, add_overrides, at_least, fraction, parse, run_tool
from detrx.d2.config import instantiate
from detrx.d2.data import MetadataCatalog
from detrx.data import get_detection_dataset_dicts
from detrx.data.bad_files import UNREADABLE, BadFiles
from detrx.data.loader import Mapper, random_state_of
from detrx.engine import load_config, load_model
from detrx.engine.evaluation import evaluator_for


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    analyses = query_analyses()
    parser = argparse.ArgumentParser(
        description="Run a trained detector on a dataset, one image at a time, and write plots (PNG) and numbers "
        "(JSON) of what its queries do, or of what they would receive in training. Images that cannot be read are "
        "named and left out; the exit status is then 1.",
        epilog="example: analyze_queries.py --activation --weights output/model_final.pth "
        "--config-file configs/deformable_detr/deformable_detr_digits.py",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    add_config(source, required=False)
    source.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="analyse all runs of a study that tools/study.py has trained, but those of models to which no analysis "
        "applies; writes results to <variant>/seed<N>/ in the output folder, and comparisons of the variants to the "
        "output folder itself",
    )
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="checkpoint (averaged weights are used if it has any); with --study, the output folder of tools/study.py",
    )
    parser.add_argument("--dataset", metavar="NAME", help="registered dataset (default: the config's test dataset)")
    parser.add_argument("--num", type=at_least(1), metavar="N", help="only the first N images")
    parser.add_argument("--output", type=Path, default=Path("output/queries"), metavar="DIR")
    add_device(parser)
    add_overrides(parser)
    parser.add_argument(
        "--score-threshold",
        type=fraction,
        default=0.5,
        metavar="S",
        help="minimum score of a confident detection (default: 0.5)",
    )
    wanted = parser.add_argument_group("analyses, at least one")
    for name, analysis in analyses.items():
        wanted.add_argument(f"--{name}", action="append_const", dest="analyses", const=analysis, help=analysis.help)
        analysis.add_arguments(parser)
    args = parse(parser, argv)
    if not args.analyses:
        parser.error(f"give at least one analysis: {', '.join(f'--{name}' for name in analyses)}")
    if args.study and args.opts:
        parser.error(f"{args.opts[0]}: the file of a study contains its overrides")
    return args


def mapped(
    dataset: str | list[str], mapper: Mapper, num: int | None, bad: BadFiles, filter_empty: bool = False
) -> Iterator[dict[str, Any]]:
    """The first `num` images of a dataset; what the mapper does at random depends on the position only.

    Raises:
        ValueError: no image can be read.
    """
    records = get_detection_dataset_dicts(dataset, filter_empty)[:num]
    unreadable = 0
    for position, record in enumerate(tqdm(records, desc="analysing", unit="img")):
        try:
            with random_state_of(0, position):
                inputs = mapper(record)
        except UNREADABLE as error:
            bad.add(error)
            unreadable += 1
            continue
        yield inputs
    if unreadable == len(records):
        bad.raise_any()


@torch.no_grad()
def analyse(
    args: argparse.Namespace, config: str, overrides: list[str], weights: str, output: Path, bad: BadFiles
) -> list[QueryAnalysis]:
    """Run the analyses of one checkpoint. Images that cannot be read go into `bad`."""
    cfg = load_config(config, overrides)
    names = cfg.dataloader.test.dataset.names
    dataset = args.dataset or (names if isinstance(names, str) else names[0])
    class_names = MetadataCatalog.get(dataset).get("thing_classes") or []
    model = load_model(cfg, weights, args.device)
    make_evaluator = partial(evaluator_for, cfg, dataset) if "evaluator" in cfg.dataloader else None
    subject = Subject(
        model,
        cfg.model,
        class_names,
        args.score_threshold,
        iteration=cfg.train.max_iter,
        options=args,
        make_evaluator=make_evaluator,
    )
    wanted = [each for each in dict.fromkeys(args.analyses) if not args.study or each.applies_to(model)]
    if not wanted:
        print("left out: no analysis applies to this model")
        return []
    analyses = [each.of(subject) for each in wanted]
    if of_detections := [each for each in analyses if not each.on_training]:
        mapper = instantiate(cfg.dataloader.test.mapper)
        for inputs in mapped(dataset, mapper, args.num, bad):
            (result,) = model([inputs])
            for analysis in of_detections:
                analysis.observe(inputs, result["instances"])
    if of_training := [each for each in analyses if each.on_training]:
        dataset = args.train_dataset or cfg.dataloader.train.dataset.names
        mapper = instantiate(cfg.dataloader.train.mapper)
        for inputs in mapped(dataset, mapper, args.num, bad, filter_empty=True):
            for analysis in of_training:
                analysis.observe(inputs, inputs["instances"])
    output.mkdir(parents=True, exist_ok=True)
    for analysis in analyses:
        print(analysis.write(output))
    return analyses


def run(args: argparse.Namespace) -> None:
    bad = BadFiles()
    if not args.study:
        analyse(args, args.config_file, args.opts, args.weights, args.output, bad)
        bad.raise_any()
        return
    study = load_study(args.study)
    found: dict[type[QueryAnalysis], dict[str, dict[int, QueryAnalysis]]] = {}
    for variant in study.variants:
        for seed in study.seeds:
            weights = Run(variant, seed, Path(args.weights)).folder / "model_final.pth"
            output = Run(variant, seed, args.output).folder
            print(f"{variant.name}, seed {seed}")
            for analysis in analyse(args, variant.config, list(variant.overrides), str(weights), output, bad):
                found.setdefault(type(analysis), {}).setdefault(variant.name, {})[seed] = analysis
    for kind, analyses in found.items():
        if comparison := kind.compare(analyses, args.output):
            print(comparison)
    bad.raise_any()


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
