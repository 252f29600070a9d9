#!/usr/bin/env python3
"""Multi-scale deformable attention: the compiled kernel against the grid_sample reference, time and peak memory.

Shapes: "encoder" is the encoder of a 4-level detector at 800x1333 (one query per token, locations near it),
"decoder300" and "decoder900" a decoder's queries on the same maps.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from harness import machine, medians, peak_mib, print_table, write_json

from detrx.ops import extension_info, has_kernel, ms_deform_attn, ms_deform_attn_reference

LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]
HEADS, CHANNELS, POINTS = 8, 32, 4
QUERIES = {"encoder": None, "decoder300": 300, "decoder900": 900}
OPERATORS = {"kernel": ms_deform_attn, "reference": ms_deform_attn_reference}


def make_inputs(shape: str, batch: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random arguments of `ms_deform_attn`; sampling points lie some two pixels around their query."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    tokens = int(shapes.prod(1).sum())
    if QUERIES[shape] is None:
        centres = torch.cat([_pixel_centres(height, width) for height, width in LEVELS])
    else:
        centres = torch.rand(QUERIES[shape], 2, generator=generator)
    queries = len(centres)
    noise = torch.randn(batch, queries, HEADS, len(LEVELS), POINTS, 2, generator=generator)
    locations = centres.view(queries, 1, 1, 1, 2) + 2 * noise / shapes.flip(1).view(len(LEVELS), 1, 2)
    weights = torch.randn(batch, queries, HEADS, len(LEVELS) * POINTS, generator=generator).softmax(-1)
    value = torch.randn(batch, tokens, HEADS, CHANNELS, generator=generator)
    floats = (value, locations, weights.view(batch, queries, HEADS, len(LEVELS), POINTS))
    value, locations, weights = (x.to(device, dtype).requires_grad_() for x in floats)
    return [value, shapes.to(device), starts.to(device), locations, weights]


def _pixel_centres(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def forward(operator: Callable, inputs: list[torch.Tensor]) -> None:
    with torch.no_grad():
        operator(*inputs)


def forward_backward(operator: Callable, inputs: list[torch.Tensor]) -> None:
    output = operator(*inputs)
    torch.autograd.grad(output, [x for x in inputs if x.requires_grad], torch.ones_like(output))


def measure_memory(args: argparse.Namespace, shape: str, batch: int) -> dict[str, float]:
    """Peak MiB of a forward+backward of each operator, each in a process of its own."""
    result = {}
    for name in OPERATORS:
        command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads)]
        command += ["--dtype", args.dtype, "--shapes", shape, "--batch", str(batch), "--peak-memory-of", name]
        result[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def measure(args: argparse.Namespace, shape: str, batch: int) -> dict[str, object]:
    inputs = make_inputs(shape, batch, args.device, getattr(torch, args.dtype))
    rounds = args.rounds or (7 if shape == "encoder" else 25)
    row: dict[str, object] = {"shape": f"{shape} x{batch}"}
    for label, run in (("fwd", forward), ("fwd+bwd", forward_backward)):
        calls = {name: lambda op=op, run=run: run(op, inputs) for name, op in OPERATORS.items()}
        times = medians(calls, rounds, args.device)
        row |= {f"{label} ms": times["kernel"], f"ref {label} ms": times["reference"]}
        row |= {f"{label} ratio": times["reference"] / times["kernel"]}
    memory = measure_memory(args, shape, batch)
    row |= {"peak MiB": memory["kernel"], "ref MiB": memory["reference"]}
    return row | {"memory ratio": memory["kernel"] / memory["reference"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--shapes", nargs="+", choices=list(QUERIES), default=list(QUERIES))
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes (default: 1 2; 1 4 16 on a GPU)")
    parser.add_argument("--rounds", type=int, help="measurements per median (default: 7 for encoder, else 25)")
    parser.add_argument("--peak-memory-of", choices=list(OPERATORS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    torch.set_num_threads(args.threads)
    if args.peak_memory_of:
        inputs = make_inputs(args.shapes[0], args.batch[0], args.device, getattr(torch, args.dtype))
        print(peak_mib(lambda: forward_backward(OPERATORS[args.peak_memory_of], inputs), args.device))
        return
    if not has_kernel("ms_deform_attn", args.device):
        parser.error(f"no compiled kernel for {args.device}: {extension_info()}")

    where = machine(args.device) | {"extension": extension_info(), "dtype": args.dtype}
    batches = args.batch or ([1, 2] if args.device == "cpu" else [1, 4, 16])
    rows = [measure(args, shape, batch) for shape in args.shapes for batch in batches]
    print_table(rows)
    sizes = {"levels": LEVELS, "heads": HEADS, "channels": CHANNELS, "points": POINTS}
    content = {"machine": where, "sizes": sizes, "results": rows}
    print("written:", write_json(f"ms_deform_attn_{args.device}_{args.dtype}", content))


if __name__ == "__main__":
    main()
