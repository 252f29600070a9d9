"""Mixture of experts, query routing, and the decoder of Mr. DETR with its three routes in one pass or in three."""

from argparse import Namespace

import moe
import query_routing
import torch
import training_step
from harness import device_medians
from kernel_model import gpu_named, moe_times, routing_times

from detrx.ops import moe_combine, moe_dispatch, moe_route

from .context import Context

DTYPES = ("bfloat16", "float32")


def run(context: Context) -> None:
    tiny, device = context.tiny, context.device
    gpu = gpu_named(torch.cuda.get_device_name() if device == "cuda" else "none")
    rounds = 1 if tiny else 7
    args = Namespace(
        device=device, rounds=rounds, threads=1, size=64 if tiny else 1024, batch=1 if tiny else 2, boxes=(10, 20)
    )
    args.hybrid_queries = 20
    for dtype in context.in_time(DTYPES[:1] if tiny else DTYPES, "decoders"):
        args.dtype = dtype
        row = training_step.measure_decoder(args, 10 if tiny else 300)
        context.report.row("decoder", {"dtype": dtype, **row})
    for dtype in context.in_time(DTYPES, "tables of experts"):
        args.dtype = dtype
        modules = moe.make_modules(device, getattr(torch, dtype))
        for shape in ("decoder",) if tiny else moe.TOKENS:
            row = {"dtype": dtype, **moe.measure(args, shape, modules)}
            context.report.row("experts", row | measure_experts(args, moe.TOKENS[shape], gpu))
    for dtype in context.in_time(DTYPES, "tables of query routing"):
        args.dtype = dtype
        for batch, queries in [(1, 16)] if tiny else [(1, 300), (2, 900), (2, 1800), (16, 900), (2, 20000)]:
            row = {"dtype": dtype, **query_routing.measure_routing(args, batch, queries)}
            estimate = routing_times(batch, queries, query_routing.CHANNELS, dtype, gpu)
            context.report.row("routing", row | {"fwd expected ms": estimate.ms, "fwd bound": estimate.bound})


def measure_experts(args: Namespace, tokens: int, gpu: object) -> dict[str, object]:
    """The operators around the matrix products: route, dispatch and combine, forward."""
    dtype, k = getattr(torch, args.dtype), moe.TOP_K
    logits = torch.randn(tokens, moe.EXPERTS).to(args.device, dtype)
    x = torch.randn(tokens, moe.CHANNELS).to(args.device, dtype)
    routing = moe_route(logits, k)
    places = routing.order, routing.place
    rows = moe_dispatch(x, *places)
    calls = {
        "route": lambda: moe_route(logits, k),
        "dispatch": lambda: moe_dispatch(x, *places),
        "combine": lambda: moe_combine(rows, routing.weights, *places),
    }
    times = device_medians(calls, args.rounds, args.device)
    expected = moe_times(tokens, moe.EXPERTS, k, moe.CHANNELS, args.dtype, gpu)
    result: dict[str, object] = {}
    for name, value in times.items():
        result |= {f"{name} ms": value, f"{name} expected ms": expected[name].ms, f"{name} bound": expected[name].bound}
    return result
