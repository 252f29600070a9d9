"""Train the variants of a study with several seeds and compare them."""

import argparse
import contextlib
import io
import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from detrx.analysis.study import Preparation, Run, Study, Training, Variant, check_seeds, load_study
from detrx.analysis.study_figure import plot_study
from detrx.analysis.study_processes import pass_on_sigterm
from detrx.analysis.study_record import markdown_table, mean_cost, summarise
from detrx.analysis.study_runs import Resources, cost_of, curve_of, measured_once, prepare, result_of
from detrx.analysis.study_schedule import plan, train_all
from detrx.analysis.table import print_table
from detrx.cli import analyze_queries
from detrx.cli._command import at_least, device, run_tool, write_json
from detrx.collect_env import machine
from detrx.data.bad_files import BadFiles
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
        "--device", type=device, help="train on cpu, cuda, ... (default: as the study and its configs say)"
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="CPU threads of each training (default: torch's; with several jobs, the cores divided by the jobs)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="processes of each training that load data; changes no result (default: the config's)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="train nothing; list the trainings, and which of them are finished"
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


def train(training: Training, resources: Resources) -> dict[str, float] | None:
    if isinstance(training, Preparation):
        prepare(training, resources=resources)
        return None
    return result_of(training, resources=resources)


def resources_of(args: argparse.Namespace) -> Resources:
    """What each training gets."""
    threads = args.threads
    if threads is None and args.jobs > 1:
        threads = max(len(os.sched_getaffinity(0)) // args.jobs, 1) if hasattr(os, "sched_getaffinity") else 1
    return Resources(threads, args.device, args.workers)


def figures_of(run: Run, analyses: argparse.Namespace) -> dict[str, float]:
    """The scalars of the analyses of a finished run; none if they have not been made, and its weights are gone."""

    def measure() -> dict[str, Any]:
        bad = BadFiles()
        output = run.folder / "queries"
        made = analyze_queries.analyse(analyses, run.variant.config, run.settings, str(run.weights), output, bad)
        bad.raise_any()
        scalars = {name: value for each in made for name, value in each.scalars().items() if math.isfinite(value)}
        return {"figures": scalars}

    asked = {"arguments": analyses.arguments}
    measured = measured_once(run, "analyses", asked, measure)
    return {} if measured is None else measured["figures"]


def parsed_analyses(study: Study, args: argparse.Namespace, on: str) -> argparse.Namespace | None:
    """What tools/analyze_queries.py makes of the study's `analyses`; None if it has none.

    Raises:
        ValueError: they are no arguments of it.
    """
    if not study.analyses:
        return None
    rest = ["--study", str(args.study), "--weights", str(args.output), "--device", on]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            analyses = analyze_queries.parse_args([*study.analyses, *rest])
    except SystemExit as stopped:
        reason = said.getvalue().rpartition("error: ")[2].strip()
        raise InvalidInputError(f"study {args.study}: `analyses`: {reason}") from stopped
    analyses.arguments = list(study.analyses)
    return analyses


def run(args: argparse.Namespace) -> None:
    study = load_study(args.study)
    measured_on = args.device or device("auto")
    analyses = parsed_analyses(study, args, measured_on)
    variants = select(study, args.variants)
    seeds = list(check_seeds(args.seeds, "--seeds") if args.seeds else study.seeds)
    kept = args.record and args.record.with_suffix("")
    todo = plan(study, variants, seeds, args.output, kept)
    if args.dry_run:
        print_table(todo.states())
        return
    with pass_on_sigterm():
        results = train_all(todo.uses, partial(train, resources=resources_of(args)), args.jobs)
    runs = {(each.variant, each.seed): each for each in todo.runs}
    if analyses is not None:
        for each in todo.runs:
            results[each] = results[each] | figures_of(each, analyses)
    rows = {}
    for variant in variants:
        costs = [cost_of(runs[variant, seed], args.images, args.rounds, measured_on) for seed in seeds]
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
    where = machine(measured_on.partition(":")[0])
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
