"""Training steps of detectors on random batches, for benchmarks of training."""

import argparse
from contextlib import AbstractContextManager
from typing import Any

import torch

from detrx.d2.structures import Boxes, Instances
from detrx.modeling import DetectionTransformer


def add_batch_arguments(parser: argparse.ArgumentParser, size: int, batch: int, boxes: tuple[int, int]) -> None:
    """The arguments that the functions of this module read, with these defaults."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--size", type=int, default=size, help=f"side of the images (default: {size})")
    parser.add_argument("--batch", type=int, default=batch, help=f"images (default: {batch})")
    parser.add_argument(
        "--boxes",
        nargs=2,
        type=int,
        default=boxes,
        metavar=("LOW", "HIGH"),
        help=f"in an image, drawn uniformly from LOW..HIGH (default: {boxes[0]} {boxes[1]})",
    )


def check_batch_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if not 0 <= args.boxes[0] <= args.boxes[1]:
        parser.error(f"--boxes {args.boxes[0]} {args.boxes[1]}: expected 0 <= LOW <= HIGH")


def make_inputs(args: argparse.Namespace, num_classes: int) -> list[dict[str, Any]]:
    """A batch of square images of noise with boxes of a tenth to half of their sides."""
    return random_batch(args.batch, (args.size, args.size), args.boxes, num_classes)


def random_batch(batch: int, size: tuple[int, int], boxes: tuple[int, int], num_classes: int) -> list[dict[str, Any]]:
    """Images of noise of this height and width, with boxes of a tenth to half of their sides; how many is drawn
    uniformly from `boxes`."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([size[1], size[0]])
    inputs = []
    for _ in range(batch):
        low, high = boxes
        count = int(torch.randint(low, high + 1, (), generator=generator))
        extent = sides * (0.1 + 0.4 * torch.rand(count, 2, generator=generator))
        corner = (sides - extent) * torch.rand(count, 2, generator=generator)
        classes = torch.randint(num_classes, (count,), generator=generator)
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        truth = Boxes(torch.cat([corner, corner + extent], 1))
        inputs.append({"image": image, "instances": Instances(size, gt_boxes=truth, gt_classes=classes)})
    return inputs


def autocast(args: argparse.Namespace) -> AbstractContextManager:
    return torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")


def train_step(args: argparse.Namespace, model: DetectionTransformer, inputs: list[dict[str, Any]]) -> None:
    """Forward, losses and backward."""
    model.zero_grad()
    with autocast(args):
        losses = model(inputs)
    torch.stack(list(losses.values())).sum().backward()
