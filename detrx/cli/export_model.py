"""Export a trained detector as a torch.export program or an ONNX file."""

import argparse
import json
from functools import partial
from pathlib import Path

from detrx.cli._command import (
    add_config,
    add_overrides,
    add_size,
    add_weights,
    device,
    not_negative,
    parse,
    run_tool,
)
from detrx.engine.config import load_config
from detrx.engine.trained import load_model
from detrx.export import (
    DetectionGraph,
    check_onnx_packages,
    check_same_detections,
    example_images,
    export_program,
    save_onnx,
    save_program,
)
from detrx.modeling import as_detection_transformer
from detrx.predictor import class_names_of

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a detector to one file for images of one size. The file includes normalisation, but no "
        "training methods. Input: images (B, 3, H, W), RGB in 0..255. Outputs: boxes (B, N, 4), XYXY in pixels of the "
        "input; scores (B, N) in descending order; labels (B, N), class indices (the file's metadata has the names). "
        "The file runs without detrx. If its outputs differ from the detector's, no file is written and the exit "
        "status is 1.",
        epilog="example: export_model.py --config-file configs/deformable_detr/deformable_detr_digits.py --weights "
        "output/demo/model_final.pth --size 128 128 --output output/demo/model.onnx",
    )
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file to write: .pt2 or .onnx")
    parser.add_argument("--format", choices=SUFFIXES, help="default: by the suffix of --output")
    add_size(parser)
    parser.add_argument("--input-dtype", choices=("uint8", "float32"), default="uint8", help="default: uint8")
    parser.add_argument("--dynamic-batch", action="store_true", help="accept any batch size instead of 1")
    parser.add_argument(
        "--keep-operators",
        action="store_true",
        help="torch only: keep detrx's operators in the program, which then needs 'import detrx'",
    )
    parser.add_argument(
        "--tolerance",
        type=not_negative,
        default=1e-3,
        metavar="D",
        help="largest allowed difference to the detector, in scores and in boxes as fractions of the image size "
        "(default: 0.001)",
    )
    parser.add_argument(
        "--device", type=device, default="cpu", help="device of a .pt2 program: cpu, cuda, ... (default: cpu)"
    )
    add_overrides(parser)
    args = parse(parser, argv)
    suffixes = {suffix: name for name, suffix in SUFFIXES.items()}
    args.format = args.format or suffixes.get(args.output.suffix)
    if args.format is None or args.output.suffix != SUFFIXES[args.format]:
        wanted = " or ".join(suffixes) if args.format is None else SUFFIXES[args.format]
        parser.error(f"--output must end in {wanted}, got {args.output}")
    if args.format == "onnx" and (args.keep_operators or args.device != "cpu"):
        parser.error("--keep-operators and --device are for --format torch")
    return args


def run(args: argparse.Namespace) -> None:
    if args.format == "onnx":
        check_onnx_packages()  # now, not after minutes of tracing
    cfg = load_config(args.config_file, args.opts)
    model = as_detection_transformer(load_model(cfg, args.weights, args.device))
    graph = DetectionGraph(model)
    batches = [
        example_images(3 if args.dynamic_batch else 1, args.size, args.input_dtype, seed).to(args.device)
        for seed in range(2)
    ]
    print(f"tracing the detector for images of {args.size[0]}x{args.size[1]} ...", flush=True)
    program = export_program(graph, batches[0], args.dynamic_batch, args.keep_operators)
    datasets = cfg.dataloader.test.dataset.names
    names = class_names_of(datasets if isinstance(datasets, str) else datasets[0])
    metadata = {
        "config": Path(args.config_file).name,
        "classes": json.dumps(names),
        "input": f"images (B, 3, H, W) {args.input_dtype}, RGB in 0..255",
        "outputs": "boxes (B, N, 4) XYXY in pixels of the input; scores (B, N); labels (B, N), indices of classes",
    }
    print(f"writing and checking {args.output} ...", flush=True)
    check = partial(check_same_detections, graph, batches, tolerance=args.tolerance)
    save = save_onnx if args.format == "onnx" else save_program
    difference = save(program, args.output, metadata, check)
    kept = sum(tensor.numel() for tensor in program.state_dict.values())
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    print(f"{kept:,} of the model's {total:,} parameters are in it; {args.output.stat().st_size / 2**20:.1f} MiB")
    if difference is None:
        print("onnxruntime is not installed: the file was not compared with the detector")
    else:
        print(f"largest difference to the detector, in scores and boxes as fractions of the image: {difference:.1e}")
    print(f"exported: {args.output}")


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
