"""Convert YOLO and Pascal VOC datasets to COCO annotation files."""

import argparse
import os
import shlex
from pathlib import Path

from detrx.cli._command import at_least, run_tool
from detrx.data.convert import DIFFICULT, Labelled, read_classes, read_voc, read_yolo, write_coco_files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write one COCO annotation file per split, SPLIT.json. Images are not copied: file names are "
        "relative to a folder that is printed, together with the commands to check the result and to train on it. "
        "If any lines cannot be read, all of them are listed and nothing is written.",
        epilog="example: convert_dataset.py --format yolo --input shapes/data.yaml",
    )
    parser.add_argument("--format", required=True, choices=("yolo", "voc"))
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="yolo: a data.yaml, or a folder with a data.yaml or classes.txt; voc: folders such as VOCdevkit/VOC2007",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the folder coco in the dataset")
    parser.add_argument(
        "--splits", nargs="+", metavar="NAME", help="splits to convert, such as train val (default: all)"
    )
    parser.add_argument(
        "--difficult",
        choices=DIFFICULT,
        default="crowd",
        help="voc: treat objects marked as difficult as crowds (not trained on, ignored by the evaluation), keep them "
        "like others, or drop them (default: crowd)",
    )
    parser.add_argument(
        "--zero-based",
        action="store_true",
        help="voc: coordinates count from 0, and boxes end at xmax, ymax",
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="voc: class names in order, one per line (default: VOC's classes)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing annotation files")
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="threads that read images",
    )
    args = parser.parse_args(argv)
    if args.format == "yolo" and len(args.input) > 1:
        parser.error(f"--format yolo takes one --input, got {len(args.input)}")
    if args.format == "yolo" and (args.classes or args.zero_based):
        parser.error("--classes and --zero-based are for --format voc")
    return args


def read(args: argparse.Namespace) -> Labelled:
    if args.format == "yolo":
        return read_yolo(args.input[0], args.splits, args.workers)
    classes = None
    if args.classes:
        classes = read_classes(args.classes)
    return read_voc(args.input, args.splits, args.difficult, args.zero_based, classes, args.workers)


def run(args: argparse.Namespace) -> None:
    dataset = read(args)
    files = write_coco_files(dataset, args.output or dataset.root / "coco", args.overwrite)
    for split, images in dataset.splits.items():
        crowds = [crowd for image in images for _, _, crowd in image.objects]
        empty = sum(not image.objects for image in images)
        what = f"{len(images)} images ({empty} without objects), {len(crowds)} objects ({sum(crowds)} crowds)"
        print(f"{files[split]}: {what}")
    print(f"{len(dataset.classes)} classes; file names are relative to {dataset.root}")
    print("\n".join(["", *next_commands(files, dataset.root)]))


def next_commands(files: dict[str, Path], root: Path) -> list[str]:
    folder = shlex.quote(str(root))
    lines = ["check the result:"]
    check = "python tools/check_dataset.py"
    lines += [f"  {check} --annotations {shlex.quote(str(file))} --images {folder}" for file in files.values()]
    train, val = files.get("train", files.get("trainval")), files.get("test")
    if len(files) == 1:  # whatever its list was called
        train, val = next(iter(files.values())), None
    if "train" in files:  # and not trainval, which contains val
        val = files.get("val", val)
    if train:
        used = {"train": train, "val": val} if val else {"train": train}
        keys = [f"dataset.{k}_json={shlex.quote(str(f))} dataset.{k}_images={folder}" for k, f in used.items()]
        keys += [] if val else ["train.eval_period=0"]
        config = "configs/deformable_detr/deformable_detr_r50.py"
        command = ["python tools/lazyconfig_train_net.py", f"--config-file {config}", *keys]
        lines += ["train on it:", "  " + " \\\n    ".join(command)]
    return lines


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
