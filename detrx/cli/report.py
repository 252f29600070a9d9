"""Write a self-contained HTML report of a training."""

import argparse
from pathlib import Path

from detrx.analysis.report import Options, read_run, write_report
from detrx.cli._command import add_config, add_device, add_overrides, at_least, fraction, parse, run_tool
from detrx.data.bad_files import BadFiles


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write one self-contained HTML page about a run: config, training curves, tables of average "
        "precision, images with right, wrong and missed boxes, confusion matrix, precision-recall curves, scores, and "
        "query statistics. Detections are those of the run's last evaluation (coco_instances_results.json in "
        "OUTPUT_DIR/inference); without it, the checkpoint is run on the test dataset. Query statistics always need "
        "the checkpoint. The page lists missing parts with the command that creates them. Images that "
        "cannot be read are named and left out; the exit status is then 1.",
        epilog="example: report.py output/digits --num 100",
    )
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR", help="output folder of the training (train.output_dir)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in OUTPUT_DIR")
    add_config(parser, help="config of the model (default: config.yaml in OUTPUT_DIR)", required=False)
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint (default: model_final.pth in OUTPUT_DIR)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="detections in COCO's result format, instead of the run's own"
    )
    parser.add_argument(
        "--num", type=at_least(1), default=200, metavar="N", help="run the model on the first N images (default: 200)"
    )
    parser.add_argument(
        "--score-threshold",
        type=fraction,
        default=0.3,
        metavar="S",
        help="minimum score of detections that are drawn and counted (default: 0.3)",
    )
    parser.add_argument("--no-model", action="store_true", help="do not run the model; use only files on disk")
    add_device(parser)
    add_overrides(parser)
    return parse(parser, argv)


def run(args: argparse.Namespace) -> None:
    output = args.output or args.run / "report.html"
    options = Options(
        config_file=args.config_file,
        overrides=tuple(args.opts),
        weights=args.weights,
        results=args.results,
        num=args.num,
        score_threshold=args.score_threshold,
        use_model=not args.no_model,
        device=args.device,
    )
    bad = BadFiles()
    for part in write_report(read_run(args.run), options, output, bad):
        print(f"missing from the report: {part.why}")
    print(f"report: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    bad.raise_any()


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
