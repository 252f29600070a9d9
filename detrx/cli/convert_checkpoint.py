"""Convert a checkpoint of another project to a file for train.init_checkpoint."""

import argparse
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from torch import nn

from detrx.checkpoint import CheckpointConversionError, CheckpointError, convert_checkpoint, write_weights
from detrx.checkpoint.convert import FORMATS
from detrx.checkpoint.files import WEIGHT_SUFFIXES
from detrx.cli._command import add_config, add_overrides, parse, run_tool
from detrx.d2.config import instantiate
from detrx.engine.config import load_config, without_pretrained
from detrx.errors import InvalidInputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint of Hugging Face transformers, of the original DETR, Deformable-DETR and DINO "
        "repositories or of detrex for the model of a config, or an EfficientNet of efficientnet_pytorch for timm's "
        "model. Every tensor is accounted for: if any has no "
        "counterpart, no source or another shape, all such tensors are listed and nothing is written.",
        epilog="example: convert_checkpoint.py r50_deformable_detr-checkpoint.pth --config-file "
        "configs/deformable_detr/deformable_detr_r50.py --output deformable_detr_r50.safetensors",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".safetensors or .pth file, index of a sharded checkpoint (*.index.json), from_pretrained folder, or an "
        "installed package with one file of weights",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    add_config(target, help="config of the model that the weights are for", required=False)
    target.add_argument("--timm-model", metavar="NAME", help="timm model that the weights of a backbone are for")
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
    if args.timm_model and args.opts:
        parser.error(f"--timm-model has no config to override, got {' '.join(args.opts)}")
    return args


def model_of(args: argparse.Namespace) -> nn.Module:
    if args.config_file is not None:
        return instantiate(without_pretrained(load_config(args.config_file, args.opts).model))
    import timm

    if not timm.is_model(args.timm_model):
        raise InvalidInputError(f"--timm-model: timm has no model {args.timm_model!r}")
    return timm.create_model(args.timm_model)


def source_of(name: str) -> str:
    """`name` if it is a path, or else the path of the one file of weights in the installed package of this name."""
    try:
        found = [] if Path(name).exists() else files(name) or []
    except (PackageNotFoundError, ValueError):  # no package, or no name of one
        return name
    weights = [str(path.locate()) for path in found if path.suffix in WEIGHT_SUFFIXES]
    if found and len(weights) != 1:
        raise InvalidInputError(f"package {name} has {len(weights)} files of weights, expected one: give its path")
    return weights[0] if weights else name


def run(args: argparse.Namespace) -> None:
    source = source_of(args.source)
    if args.output.exists() and args.output.samefile(source):
        raise CheckpointError(f"--output {args.output} is the source itself; give another file")
    model = model_of(args)
    try:
        weights, report = convert_checkpoint(source, model, args.format, args.skip, args.allow_pickle)
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
