"""python -m detrx.data.digits: generate a digits dataset ahead of time, or one of another size."""

import argparse
import dataclasses
from pathlib import Path

from .generate import prepare
from .spec import VARIANTS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m detrx.data.digits",
        description="Generate a digits dataset: OUT/{train,val}/*.png, OUT/annotations/{train,val}.json (COCO format) "
        "and OUT/spec.json. Nothing happens if OUT already holds the same dataset.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--variant", choices=sorted(VARIANTS), default="digits", help="named settings (default: digits)"
    )
    parser.add_argument("--num-train", type=int, metavar="N", help="number of training images")
    parser.add_argument("--num-val", type=int, metavar="N", help="number of validation images")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random")
    args = parser.parse_args()
    changes = {name: getattr(args, name) for name in ("num_train", "num_val", "seed")}
    try:
        spec = dataclasses.replace(VARIANTS[args.variant], **{k: v for k, v in changes.items() if v is not None})
        root = prepare(args.out, spec)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(f"{spec.num_train} training and {spec.num_val} validation images in {root}")


if __name__ == "__main__":
    main()
