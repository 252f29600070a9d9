"""Check a dataset before training on it."""

import argparse
import os
import sys
from pathlib import Path

from detrx.cli._command import add_config, add_overrides, at_least, parse, run_tool, write_json
from detrx.data.check.dataset import check_coco_file, check_config, check_dataset
from detrx.data.check.report import as_text
from detrx.engine.config import load_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Check the annotations and decode every image file. Prints statistics, and for each kind of "
        "problem the count and examples. Exits with status 1 if there are errors (a training or an evaluation would "
        "stop or be meaningless), otherwise with 0. Warnings say how detrx handles the problem.",
        epilog="example: check_dataset.py --annotations shapes/train.json --images shapes/train",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, such as digits_train")
    source.add_argument("--annotations", metavar="FILE", help="a COCO annotation file; needs --images")
    add_config(source, help="check a config's datasets, also against each other and the model", required=False)
    parser.add_argument("--images", metavar="DIR", help="folder that the file names in --annotations are relative to")
    parser.add_argument("--no-images", action="store_true", help="do not decode images, only check that they exist")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 also for warnings")
    parser.add_argument(
        "--examples", type=at_least(1), default=3, metavar="N", help="examples of each kind of problem (default: 3)"
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="threads that decode images",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    add_overrides(parser, help="config overrides; require --config-file")
    args = parse(parser, argv)
    if bool(args.annotations) != bool(args.images):
        parser.error("--annotations and --images must be given together")
    if args.opts and not args.config_file:
        parser.error(f"{args.opts[0]} requires --config-file")
    return args


def run(args: argparse.Namespace) -> None:
    how = {"decode": not args.no_images, "workers": args.workers, "max_examples": args.examples}
    if args.config_file:
        checked = check_config(load_config(args.config_file, args.opts), **how)
    elif args.dataset:
        checked = [check_dataset(args.dataset, **how)]
    else:
        checked = [check_coco_file(args.annotations, args.images, **how)]
    for dataset in checked:
        print(as_text(dataset))
    if args.json:
        write_json(args.json, {"datasets": [dataset.as_dict() for dataset in checked]})
    errors, warnings = (sum(dataset.findings.count(kind) for dataset in checked) for kind in ("error", "warning"))
    if errors or (warnings and args.strict):
        sys.exit(f"error: the dataset has problems; errors: {errors}, warnings: {warnings}")
    print(f"no errors, {warnings} warnings")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
