"""Convert a checkpoint of another project to a file for train.init_checkpoint."""

import argparse
from pathlib import Path

from detrx.checkpoint import CheckpointConversionError, CheckpointError, convert_checkpoint, write_weights
from detrx.checkpoint.convert import FORMATS
from detrx.checkpoint.files import WEIGHT_SUFFIXES
from detrx.cli._command import add_config, add_overrides, parse, run_tool
from detrx.d2.config import instantiate
from detrx.engine.config import load_config, without_pretrained


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint of Hugging Face transformers, of the original DETR, Deformable-DETR and DINO "
        "repositories or of detrex for the model of a config. Every tensor is accounted for: if any has no "
        "counterpart, no source or another shape, all such tensors are listed and nothing is written.",
        epilog="example: convert_checkpoint.py r50_deformable_detr-checkpoint.pth --config-file "
        "configs/deformable_detr/deformable_detr_r50.py --output deformable_detr_r50.safetensors",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".safetensors or .pth file, index of a sharded checkpoint (*.index.json), or from_pretrained folder",
    )
    add_config(parser, help="config of the model that the weights are for")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help=f"file to write: {' or '.join(WEIGHT_SUFFIXES)}"
    )
    parser.add_argument(
        "--format", choices=sorted(FORMATS), help="format of the source (default: recognised by its keys)"
    )
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="REGEX",
        help="leave out matching keys of the source and tensors of the model, such as '.*class_head.*' to train on "
        "other classes",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="unpickle files that cannot be read otherwise. This can run arbitrary code: use trusted files only",
    )
    add_overrides(parser)
    args = parse(parser, argv)
    if args.output.suffix not in WEIGHT_SUFFIXES:
        parser.error(f"--output must end in {' or '.join(WEIGHT_SUFFIXES)}, got {args.output}")
    return args


def run(args: argparse.Namespace) -> None:
    if args.output.exists() and args.output.samefile(args.source):
        raise CheckpointError(f"--output {args.output} is the source itself; give another file")
    model = instantiate(without_pretrained(load_config(args.config_file, args.opts).model))
    try:
        weights, report = convert_checkpoint(args.source, model, args.format, args.skip, args.allow_pickle)
    except CheckpointConversionError as error:
        if error.report is not None:
            print(error.report)
        raise
    print(report)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_weights(args.output, weights)
    print(f"{len(weights)} tensors, {sum(t.numel() for t in weights.values()) / 1e6:.1f} M numbers: {args.output}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
