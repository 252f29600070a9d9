"""Deformable attention against other implementations."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from attention import (
    LEVELS,
    OPERATORS,
    PUBLISHED,
    QUERIES,
    Operator,
    Rival,
    deformops,
    floor_bytes,
    forward,
    forward_backward,
    grid_sample,
    make_inputs,
)
from harness import copy_bytes_per_ms, device_medians, peak_mib
from kernel_model import attention_times, gpu_named

from .context import Context

TINY_LEVELS = ((6, 8), (3, 4), (2, 2), (1, 1))
RUNS = {"fwd": forward, "fwd+bwd": forward_backward}
LARGEST_DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 2e-2}


@dataclass(frozen=True)
class Case:
    shape: str
    batch: int
    dtype: str
    form: str

    def __str__(self) -> str:
        return f"{self.shape} x{self.batch} {self.dtype} {self.form}"


def cases(full: bool, tiny: bool) -> list[Case]:
    """What matters most comes first: what a detector runs in mixed precision."""
    shapes = ("encoder", "decoder300") if tiny else QUERIES
    dtypes = ("bfloat16", "float32", "float16") if full and not tiny else ("bfloat16", "float32")
    batches = (1, 4, 16) if full and not tiny else (1,)
    return [
        Case(shape, batch, dtype, form)
        for form in ("fused", "unfused")
        for batch in batches
        for dtype in dtypes
        for shape in shapes
    ]


def find_rivals(context: Context, kind: str, full: bool, levels: tuple) -> dict[str, Rival]:
    on_gpu = context.device == "cuda"
    if kind == "published":
        rivals = {"published": PUBLISHED} if on_gpu else {}
        return rivals if full else rivals | {"grid_sample": grid_sample(levels)}
    try:
        return {
            f"deformops {backend}": deformops(backend) for backend in (("triton", "cuda") if on_gpu else ("eager",))
        }
    except ImportError as error:
        context.report.note(f"deformops is not installed here: {error}")
        return {}


def run(context: Context, rivals: str = "published", full: bool = False) -> None:
    levels = TINY_LEVELS if context.tiny else LEVELS
    copied = copy_bytes_per_ms(context.device, 16 if context.tiny else 1024)
    gpu = torch.cuda.get_device_name() if context.device == "cuda" else "none"
    context.report.fact(gpu=gpu, copy_gb_per_s=copied / 1e6)
    found = find_rivals(context, rivals, full, levels)
    if rivals == "deformops" and not found:
        return
    bench = Bench(context, found, levels, copied, gpu, rounds=1 if context.tiny else 5)
    for case in context.in_time(cases(full, context.tiny), "rows"):
        bench.measure(case)
    if full and rivals == "published":
        for dtype in context.in_time(("bfloat16", "float32"), "rows of the deterministic mode"):
            bench.measure_deterministic(dtype)


class Bench:
    def __init__(self, context: Context, rivals: dict[str, Rival], levels: tuple, copied: float, gpu: str, rounds: int):
        self.context, self.rivals, self.levels = context, rivals, levels
        self.copied, self.gpu, self.rounds = copied, gpu_named(gpu), rounds
        self.begun: set[str] = set()

    def measure(self, case: Case) -> None:
        report, device = self.context.report, self.context.device
        inputs = make_inputs(case.form, case.shape, case.batch, device, getattr(torch, case.dtype), self.levels)
        calls = {"detrx": (OPERATORS[case.form], inputs)}
        row: dict[str, Any] = {"shape": case.shape, "batch": case.batch, "dtype": case.dtype, "form": case.form}
        for name, rival in self.rivals.items():
            call = rival.call(case.form, case.shape, case.batch, inputs, self.levels)
            if self.works(case, name, call, calls["detrx"]):
                calls[name] = call
        for label, function in RUNS.items():
            times = device_medians(
                {name: partial(function, *call) for name, call in calls.items()}, self.rounds, device
            )
            row |= {f"{name} {label} ms": value for name, value in times.items()}
        expected = attention_times(case.form, case.shape, case.batch, case.dtype, self.gpu, self.levels)
        for (label, moved), estimate in zip(zip(RUNS, floor_bytes(inputs), strict=True), expected, strict=True):
            row[f"{label} of copy speed"] = moved / row[f"detrx {label} ms"] / self.copied
            row |= {f"{label} expected ms": estimate.ms, f"{label} bound": estimate.bound}
        row |= {f"{name} MiB": peak_mib(partial(forward_backward, *call), device) for name, call in calls.items()}
        report.row("attention", row)

    def works(self, case: Case, name: str, call: tuple[Operator, list], ours: tuple[Operator, list]) -> bool:
        """Call it once, which may compile it, and compare it with ours."""
        report, start = self.context.report, time.perf_counter()
        try:
            theirs = forward(*call).float()
            forward_backward(*call)
        except Exception as error:
            report.note(f"{name} does not run at {case}: {type(error).__name__}: {str(error)[:300]}")
            return False
        if name not in self.begun:
            self.begun.add(name)
            report.fact(**{f"{name}: seconds of the first call": time.perf_counter() - start})
        difference = (theirs - forward(*ours).float()).abs().max().item() / theirs.abs().max().item()
        if not difference <= LARGEST_DIFFERENCE[case.dtype]:
            report.fail(f"{name} at {case} differs from detrx by {difference:.1e} of its largest number")
        return True

    def measure_deterministic(self, dtype: str) -> None:
        """Forward and backward of the fused operator, with atomic sums and with sums in a fixed order."""
        device = self.context.device
        inputs = make_inputs("fused", "encoder", 1, device, getattr(torch, dtype), self.levels)
        call = partial(forward_backward, OPERATORS["fused"], inputs)
        row: dict[str, object] = {"dtype": dtype, "atomic ms": device_medians({"": call}, self.rounds, device)[""]}
        torch.use_deterministic_algorithms(True)
        try:
            row["deterministic ms"] = device_medians({"": call}, self.rounds, device)[""]
        finally:
            torch.use_deterministic_algorithms(False)
        self.context.report.row("deterministic", row)
