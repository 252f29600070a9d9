"""Train the variants of a study with several seeds and compare them."""

import argparse
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from detrx.analysis.study import Run, Study, Variant, check_seeds, load_study
from detrx.analysis.study_figure import plot_study
from detrx.analysis.study_record import markdown_table, mean_cost, summarise
from detrx.analysis.study_runs import cost_of, curve_of, result_of
from detrx.cli._command import at_least, run_tool, write_json
from detrx.collect_env import machine
from detrx.errors import InvalidInputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train every variant of a study with every seed, measure what the trained models cost, print a "
        "table of means and standard deviations, and write all results as JSON, Markdown and PNG. Recorded are the "
        "figures of COCO (AP, AP50, AP75, by size, after NMS if dataloader.evaluator.nms is set, and average recall), "
        "the AP of every evaluation, losses, the time of a training step, parameters, multiply-adds and time per "
        "image. Run the command again to continue an interrupted study: finished runs are kept, others resume from "
        "their last checkpoint, and settings that have changed since are an error. Writes "
        "OUTPUT/<variant>/seed<N>/ and OUTPUT/study.*.",
        epilog="example: study.py benchmarks/studies/detectors_digits.yaml --output output/detectors",
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", metavar="N", help="seeds, instead of the study's")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="train only these variants")
    parser.add_argument(
        "--jobs", type=at_least(1), default=1, metavar="N", help="number of parallel trainings (default: 1)"
    )
    parser.add_argument(
        "--threads", type=at_least(1), metavar="N", help="CPU threads of each training (default: torch's)"
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="also record the results here, with FILE.png, FILE.md and one JSON per run; recorded runs are not "
        "repeated",
    )
    parser.add_argument(
        "--images",
        type=at_least(1),
        default=20,
        metavar="N",
        help="after training, count the multiply-adds and time the inference of every run with its trained weights on "
        "the first N images of its test loader (default: 20)",
    )
    parser.add_argument(
        "--rounds",
        type=at_least(0),
        default=3,
        metavar="N",
        help="number of timed calls per image; 0: no timing (default: 3)",
    )
    return parser.parse_args(argv)


def select(study: Study, names: list[str] | None) -> list[Variant]:
    known = {variant.name: variant for variant in study.variants}
    if unknown := [name for name in names or () if name not in known]:
        raise InvalidInputError(f"the study has no variant {', '.join(unknown)}; it has {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names or known)]


def train(runs: list[Run], jobs: int, threads: int | None) -> dict[Run, dict[str, float]]:
    """Results of all runs, `jobs` at a time. If a run fails, wait for those that have started and raise its error."""
    results = {}
    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(result_of, each, threads=threads): each for each in runs}
        try:
            for done in tqdm(as_completed(pending), total=len(runs), unit="run"):
                results[pending[done]] = done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def run(args: argparse.Namespace) -> None:
    study = load_study(args.study)
    variants = select(study, args.variants)
    seeds = list(check_seeds(args.seeds, "--seeds") if args.seeds else study.seeds)
    kept = args.record and args.record.with_suffix("")
    # Seed by seed, so that an unfinished study has results of every variant.
    runs = {(v, seed): Run(v, seed, args.output, kept) for seed in seeds for v in variants}
    results = train(list(runs.values()), args.jobs, args.threads)
    rows = {}
    for variant in variants:
        costs = [cost_of(runs[variant, seed], args.images, args.rounds) for seed in seeds]
        for seed in (seed for seed, cost in zip(seeds, costs, strict=True) if cost is None):
            print(f"{runs[variant, seed].weights} does not exist: the cost of this run is not measured")
        rows[variant.name] = {
            "config": variant.config,
            "overrides": list(variant.overrides),
            "seeds": seeds,
            "result": summarise([results[runs[variant, seed]] for seed in seeds]),
            "curves": [curve_of(runs[variant, seed]) for seed in seeds],
            "costs": costs,
            **mean_cost(costs),
        }
    head = {"title": study.title, "description": study.description, "command": args.command}
    where = machine("cuda" if torch.cuda.is_available() else "cpu")
    record = {**head, **where, "cost": {"weights": "trained"}, "variants": rows}
    print(markdown_table(record))
    for path in filter(None, (args.output / "study.json", args.record)):
        write_json(path, record)
        path.with_suffix(".md").write_text(markdown_table(record), encoding="utf-8")
        plot_study(record, path.with_suffix(".png"))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.command = shlex.join(["python", "tools/study.py", *(sys.argv[1:] if argv is None else argv)])
    run_tool(run, args)
