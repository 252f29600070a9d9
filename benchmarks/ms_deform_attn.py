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

import torch
from attention import (
    CHANNELS,
    HEADS,
    LEVELS,
    OPERATORS,
    POINTS,
    PUBLISHED,
    QUERIES,
    floor_bytes,
    forward,
    forward_backward,
    grid_sample,
    make_inputs,
)
from harness import copy_bytes_per_ms, device_medians, machine, peak_mib, print_table, write_json
from torch import Tensor

from detrx.ops import extension_info, has_kernel

# Ratios to reach: times faster than the baseline, and share of its peak memory.
BARS = {
    "cpu": {
        "encoder": {"fwd ratio": 25, "fwd+bwd ratio": 12, "memory ratio": 1 / 4},
        "decoder": {"fwd ratio": 8, "fwd+bwd ratio": 6},
    },
    "cuda": {kind: {"fwd ratio": 2, "fwd+bwd ratio": 2} for kind in ("encoder", "decoder")},
}


def calls_of(args: argparse.Namespace, form: str, shape: str, batch: int) -> dict[str, tuple[Callable, list[Tensor]]]:
    """Kernel and baseline with their arguments."""
    inputs = make_inputs(form, shape, batch, args.device, getattr(torch, args.dtype))
    rival = PUBLISHED if args.device == "cuda" else grid_sample()
    return {"kernel": (OPERATORS[form], inputs), "baseline": rival.call(form, shape, batch, inputs)}


def measure_memory(args: argparse.Namespace, form: str, shape: str, batch: int) -> dict[str, float]:
    """Peak MiB of a forward+backward of kernel and baseline, each in a process of its own."""
    result = {}
    for name in ("kernel", "baseline"):
        command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads)]
        command += ["--dtype", args.dtype, "--forms", form, "--shapes", shape, "--batch", str(batch)]
        output = subprocess.run(
            [*command, "--peak-memory-of", name], check=True, capture_output=True, text=True, encoding="utf-8"
        )
        result[name] = json.loads(output.stdout.splitlines()[-1])
    return result


def measure(args: argparse.Namespace, form: str, shape: str, batch: int) -> dict[str, object]:
    calls = calls_of(args, form, shape, batch)
    rounds = args.rounds or (7 if shape == "encoder" else 25)
    row: dict[str, object] = {"shape": f"{shape} x{batch}", "form": form}
    for label, run in (("fwd", forward), ("fwd+bwd", forward_backward)):
        times = device_medians(
            {name: functools.partial(run, *call) for name, call in calls.items()}, rounds, args.device
        )
        row |= {f"{label} ms": times["kernel"], f"base {label} ms": times["baseline"]}
        row |= {f"{label} ratio": times["baseline"] / times["kernel"]}
    if args.device == "cuda":
        speed = copy_bytes_per_ms(args.device)
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
