#!/usr/bin/env python3
"""Multi-scale deformable attention, unfused and fused (from reference points, offsets and logits): time and memory.

Shapes: "encoder" is the encoder of a 4-level detector at 800x1333 (one query per token, locations near it),
"decoder300" and "decoder900" a decoder's queries on the same maps.

The baseline is PyTorch code with grid_sample on the CPU, and on a GPU the algorithm of the published CUDA operator, in
float32 whatever --dtype is (published_ms_deform_attn.cu, compiled when it is needed). The fused operator is compared
with softmax and location arithmetic in PyTorch before the same baseline.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import machine, medians, peak_mib, print_table, write_json
from torch import Tensor

from detrx.ops import (
    extension_info,
    has_kernel,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]
HEADS, CHANNELS, POINTS = 8, 32, 4
QUERIES = {"encoder": None, "decoder300": 300, "decoder900": 900}
OPERATORS = {"unfused": ms_deform_attn, "fused": ms_deform_attn_fused}
# Ratios to reach: times faster than the baseline, and share of its peak memory.
BARS = {
    "cpu": {
        "encoder": {"fwd ratio": 25, "fwd+bwd ratio": 12, "memory ratio": 1 / 4},
        "decoder": {"fwd ratio": 8, "fwd+bwd ratio": 6},
    },
    "cuda": {kind: {"fwd ratio": 2, "fwd+bwd ratio": 2} for kind in ("encoder", "decoder")},
}


def make_inputs(form: str, shape: str, batch: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Random arguments of an operator; sampling points lie some two pixels around their query."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    tokens, levels = int(shapes.prod(1).sum()), len(LEVELS)
    if QUERIES[shape] is None:
        centres = torch.cat([_pixel_centres(height, width) for height, width in LEVELS])
    else:
        centres = torch.rand(QUERIES[shape], 2, generator=generator)
    queries = len(centres)
    reference = centres[None, :, None].repeat(batch, 1, levels, 1)
    offsets = 2 * torch.randn(batch, queries, HEADS, levels, POINTS, 2, generator=generator)
    logits = torch.randn(batch, queries, HEADS, levels, POINTS, generator=generator)
    value = torch.randn(batch, tokens, HEADS, CHANNELS, generator=generator)
    if form == "unfused":
        offsets, logits = _locations_and_weights(shapes, reference, offsets, logits)
    value, offsets, logits = (x.to(device, dtype).requires_grad_() for x in (value, offsets, logits))
    geometry = [shapes.to(device), starts.to(device)]
    if form == "fused":
        geometry.append(reference.to(device, torch.promote_types(dtype, torch.float32)))
    return [value, *geometry, offsets, logits]


def _pixel_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def _locations_and_weights(shapes: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    locations = reference[:, :, None, :, None] + offsets / shapes.flip(1)[:, None]
    return locations, logits.flatten(3).softmax(-1).view_as(logits)


@functools.cache
def _published():
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("published_ms_deform_attn.cu")
    return load("published_ms_deform_attn", [str(source)], extra_cuda_cflags=["-O3"])


class Published(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _published().forward(*inputs)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        value, locations, weights = _published().backward(grad_output, *ctx.saved_tensors)
        return value, None, None, locations, weights


def published_fused(value, shapes, starts, reference, offsets, logits) -> Tensor:
    return Published.apply(value, shapes, starts, *_locations_and_weights(shapes, reference, offsets, logits))


BASELINES = {
    "cpu": {"unfused": ms_deform_attn_reference, "fused": ms_deform_attn_fused_reference},
    "cuda": {"unfused": Published.apply, "fused": published_fused},
}


def forward(operator: Callable, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        operator(*inputs)


def forward_backward(operator: Callable, inputs: list[Tensor]) -> None:
    output = operator(*inputs)
    torch.autograd.grad(output, [x for x in inputs if x.requires_grad], torch.ones_like(output))


def calls_of(args: argparse.Namespace, form: str, shape: str, batch: int) -> dict[str, tuple[Callable, list[Tensor]]]:
    """Kernel and baseline with their arguments."""
    dtype = getattr(torch, args.dtype)
    inputs = make_inputs(form, shape, batch, args.device, dtype)
    baseline_inputs = inputs
    if args.device == "cuda" and dtype != torch.float32:
        baseline_inputs = make_inputs(form, shape, batch, args.device, torch.float32)
    return {"kernel": (OPERATORS[form], inputs), "baseline": (BASELINES[args.device][form], baseline_inputs)}


def measure_memory(args: argparse.Namespace, form: str, shape: str, batch: int) -> dict[str, float]:
    """Peak MiB of a forward+backward of kernel and baseline, each in a process of its own."""
    result = {}
    for name in ("kernel", "baseline"):
        command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads)]
        command += ["--dtype", args.dtype, "--forms", form, "--shapes", shape, "--batch", str(batch)]
        output = subprocess.run([*command, "--peak-memory-of", name], check=True, capture_output=True, text=True)
        result[name] = json.loads(output.stdout.splitlines()[-1])
    return result


def floor_bytes(inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes of forward, and of forward and backward, if every input and output moved once."""
    value, offsets = inputs[0], inputs[-2]
    output = offsets.shape[0] * offsets.shape[1] * HEADS * CHANNELS * value.element_size()
    read = sum(x.nbytes for x in inputs)
    return read + output, 2 * (read + output) + sum(x.nbytes for x in inputs if x.requires_grad)


def copy_bytes_per_ms() -> float:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / medians({"copy": lambda: target.copy_(source)}, 20, "cuda")["copy"]


def measure(args: argparse.Namespace, form: str, shape: str, batch: int) -> dict[str, object]:
    calls = calls_of(args, form, shape, batch)
    rounds = args.rounds or (7 if shape == "encoder" else 25)
    row: dict[str, object] = {"shape": f"{shape} x{batch}", "form": form}
    for label, run in (("fwd", forward), ("fwd+bwd", forward_backward)):
        times = medians({name: functools.partial(run, *call) for name, call in calls.items()}, rounds, args.device)
        row |= {f"{label} ms": times["kernel"], f"base {label} ms": times["baseline"]}
        row |= {f"{label} ratio": times["baseline"] / times["kernel"]}
    if args.device == "cuda":
        speed = copy_bytes_per_ms()
        for label, floor in zip(("fwd", "fwd+bwd"), floor_bytes(calls["kernel"][1]), strict=True):
            row |= {f"{label} of copy speed": floor / row[f"{label} ms"] / speed}
    memory = measure_memory(args, form, shape, batch)
    row |= {"peak MiB": memory["kernel"], "base MiB": memory["baseline"]}
    return row | {"memory ratio": memory["kernel"] / memory["baseline"]}


def missed_bars(args: argparse.Namespace, row: dict[str, object]) -> list[str]:
    missed = []
    for name, bar in BARS[args.device][str(row["shape"])[:7]].items():
        if name != "memory ratio" and args.device == "cuda" and args.dtype in ("bfloat16", "float16"):
            bar = 3
        if row[name] > bar if name == "memory ratio" else row[name] < bar:
            missed.append(f"{row['shape']} {row['form']}: {name} {row[name]:.2f}, bar {bar}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--forms", nargs="+", choices=list(OPERATORS), default=list(OPERATORS))
    parser.add_argument("--shapes", nargs="+", choices=list(QUERIES), default=list(QUERIES))
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes (default: 1 2; 1 4 16 on a GPU)")
    parser.add_argument("--rounds", type=int, help="measurements per median (default: 7 for encoder, else 25)")
    parser.add_argument("--peak-memory-of", choices=["kernel", "baseline"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    torch.set_num_threads(args.threads)
    batches = args.batch or ([1, 2] if args.device == "cpu" else [1, 4, 16])
    if args.peak_memory_of:
        call = calls_of(args, args.forms[0], args.shapes[0], batches[0])[args.peak_memory_of]
        if args.device == "cuda":
            forward(*call)  # compiles the baseline
        print(peak_mib(lambda: forward_backward(*call), args.device))
        return
    if not has_kernel("ms_deform_attn", args.device):
        parser.error(f"no compiled kernel for {args.device}: {extension_info()}")

    where = machine(args.device) | {"extension": extension_info(), "dtype": args.dtype}
    rows = [measure(args, form, shape, batch) for shape in args.shapes for batch in batches for form in args.forms]
    print_table(rows)
    missed = [text for row in rows for text in missed_bars(args, row)]
    print("\n".join(["below their bars:", *missed] if missed else ["all bars met"]))
    sizes = {"levels": LEVELS, "heads": HEADS, "channels": CHANNELS, "points": POINTS}
    content = {"machine": where, "sizes": sizes, "bars": BARS[args.device], "missed": missed, "results": rows}
    print("written:", write_json(f"ms_deform_attn_{args.device}_{args.dtype}", content))


if __name__ == "__main__":
    main()
