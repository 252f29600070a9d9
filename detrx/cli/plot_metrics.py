"""Plot the training curves of one or several runs."""

import argparse
from pathlib import Path

from detrx.analysis import plot_runs, read_metrics
from detrx.cli._command import at_least, run_tool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Plot training curves from metrics.json to one PNG: total loss, losses by kind, average precision "
        "and learning rate by iteration; if logged, also the load of experts (Mr. DETR++) and the number of queries "
        "that pass the routers (QR-DETR). Several runs are overlaid, one colour each.",
        epilog="example: plot_metrics.py output/run_a output/run_b --names baseline 'with denoising' --output ab.png",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run with metrics.json, or the file itself"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the runs (default: their folders)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="PNG to write (default: metrics.png in the first run's folder)"
    )
    parser.add_argument("--title", default="", help="title of the figure")
    parser.add_argument(
        "--smooth", type=at_least(1), default=10, metavar="N", help="average losses over N logged values (default: 10)"
    )
    args = parser.parse_args(argv)
    if args.names and len(args.names) != len(args.runs):
        parser.error(f"--names needs one name per run: got {len(args.names)} for {len(args.runs)} runs")
    return args


def run(args: argparse.Namespace) -> None:
    first = args.runs[0]
    output = args.output or (first if first.is_dir() else first.parent) / "metrics.png"
    names = args.names or [None] * len(args.runs)
    runs = [read_metrics(run, name) for run, name in zip(args.runs, names, strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(runs, output, args.title, args.smooth)
    print(f"curves: {output}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
