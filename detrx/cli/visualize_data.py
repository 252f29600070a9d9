"""Draw the augmented images and boxes that a model receives, as a contact sheet."""

import argparse
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from detrx.analysis import contact_sheet
from detrx.analysis.data_sheet import draw_sample, loader_samples
from detrx.atomic import write_atomically
from detrx.cli._command import add_config, add_overrides, at_least, parse, run_tool
from detrx.data import class_names_of
from detrx.data.bad_files import BadFiles
from detrx.engine import load_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw images as the model of a config receives them, after augmentation, with their boxes and "
        "classes. Writes one PNG, a contact sheet. By default, it shows the first images of a training with "
        "train.seed=SEED, the same in every run with the same seed. Images that "
        "cannot be read are named and left out; the exit status is then 1. No model is built.",
        epilog="example: visualize_data.py --config-file configs/dino/dino_digits.py --num 12 --output sheet.png "
        "dataset.train_json=my/train.json dataset.train_images=my/images",
    )
    add_config(parser, help="config with the data loaders")
    parser.add_argument(
        "--split", choices=("train", "test"), default="train", help="loader of the config to draw from (default: train)"
    )
    parser.add_argument("--num", type=at_least(1), default=16, metavar="N", help="number of images (default: 16)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of sampling and augmentation (default: 0)")
    parser.add_argument(
        "--columns", type=at_least(1), default=4, metavar="N", help="columns of the contact sheet (default: 4)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/data.png"), metavar="FILE", help="default: output/data.png"
    )
    add_overrides(parser)
    return parse(parser, argv)


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    names = cfg.dataloader[args.split].dataset.names
    datasets = [names] if isinstance(names, str) else list(names)
    cells, boxes = [], []
    bad = BadFiles()
    samples = loader_samples(cfg, args.split, args.num, args.seed, skip=bad.add)
    for sample in tqdm(samples, total=args.num, desc="drawing", unit="img"):
        cells.append(draw_sample(sample, class_names_of(datasets[0])))
        boxes.append(len(sample["instances"]))
    if not cells:
        bad.raise_any()
    title = f"{', '.join(datasets)}: {args.split}, seed {args.seed}"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(cells, args.columns, title, legend=False)
    kind = Image.registered_extensions().get(args.output.suffix.lower(), "PNG")
    write_atomically(args.output, lambda file: sheet.save(file, kind))
    print(f"{len(cells)} images, {sum(boxes)} boxes, {boxes.count(0)} images without any: {args.output}")
    bad.raise_any()


def main(argv: list[str] | None = None) -> None:
    run_tool(run, parse_args(argv))
