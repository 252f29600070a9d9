#!/usr/bin/env python3
"""Query routing: the kernels against boolean-mask indexing, and a decoder layer on half of its queries.

First table: route, gather and scatter of (B, N, 256), half of the queries kept. "masks" is what one writes without
these operators. Second table: a layer on all queries, and routed onto half of them (routing included; as many in each
image, so that no slot is padding) on the four levels of an 800x1333 image. On the CPU, the layer with few queries
samples the image's tokens before it projects them; with many, it projects all tokens first, which costs the same for
any number of queries.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from harness import device_medians, machine, print_table, write_json
from torch import Tensor, nn

from detrx.layers import FFN, MultiheadAttention
from detrx.modeling import DecoderLayer, DeformableCrossAttention, MultiScaleTokens, QueryGroup
from detrx.modeling.queries import QueryLayout
from detrx.ops import extension_info, has_kernel, query_gather, query_scatter

LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]
CHANNELS, HEADS, POINTS, HIDDEN = 256, 8, 4, 1024
ROUTING_BATCHES, QUERIES = [1, 2, 8, 16], [300, 900, 1800]


def half_of(batch: int, queries: int, device: str) -> Tensor:
    """(B, N) bool mask that keeps a random half of each image's queries."""
    return (torch.rand(batch, queries).argsort(dim=1) < queries // 2).to(device)


def with_kernels(x: Tensor, keep: Tensor) -> Tensor:
    packed, index, valid = query_gather(x, keep)
    return query_scatter(x, packed, index, valid)


def with_masks(x: Tensor, keep: Tensor) -> Tensor:
    counts = keep.sum(1)
    slots = int(counts.max())
    valid = torch.arange(slots, device=x.device) < counts[:, None]
    packed = x.new_zeros(x.shape[0], slots, x.shape[2])
    packed[valid] = x[keep]
    output = x.clone()
    output[keep] = packed[valid]
    return output


def run(function: Callable[[], Tensor], inputs: list[Tensor] | None) -> None:
    """Forward, and backward to `inputs` if they are given."""
    with torch.set_grad_enabled(inputs is not None):
        output = function()
    if inputs is not None:
        torch.autograd.grad(output, inputs, torch.ones_like(output))


def measure(
    functions: dict[str, Callable[[], Tensor]], inputs: list[Tensor], rounds: int, device: str
) -> dict[str, dict[str, float]]:
    """Median milliseconds by "fwd" or "fwd+bwd", then by function."""
    result = {}
    for label, wanted in (("fwd", None), ("fwd+bwd", inputs)):
        calls = {name: partial(run, function, wanted) for name, function in functions.items()}
        result[label] = device_medians(calls, rounds, device)
    return result


def measure_routing(args: argparse.Namespace, batch: int, queries: int) -> dict[str, object]:
    x = torch.randn(batch, queries, CHANNELS).to(args.device, getattr(torch, args.dtype)).requires_grad_()
    keep = half_of(batch, queries, args.device)
    assert torch.equal(with_kernels(x, keep), with_masks(x, keep))
    functions = {"kernels": partial(with_kernels, x, keep), "masks": partial(with_masks, x, keep)}
    row: dict[str, object] = {"shape": f"{batch} x {queries}"}
    for label, times in measure(functions, [x], args.rounds or 101, args.device).items():
        row |= {f"{label} ms": times["kernels"], f"masks {label} ms": times["masks"]}
        row |= {f"{label} ratio": times["masks"] / times["kernels"]}
    return row


class RoutedLayer(nn.Module):
    """A decoder layer; where a mask is given, on the kept queries only."""

    def __init__(self, layer: DecoderLayer, memory: MultiScaleTokens):
        super().__init__()
        self.layer, self.memory = layer, memory

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            return self.run_layer(x, pos, reference)
        packed, index, valid = query_gather((x, pos, reference), keep)
        return query_scatter(x, self.run_layer(*packed), index, valid)

    def run_layer(self, x: Tensor, pos: Tensor, reference: Tensor) -> Tensor:
        layout = QueryLayout([QueryGroup("main", x, pos, reference)])
        return self.layer(layout.queries(), self.memory, layout, 0)


def make_memory(batch: int, device: str, dtype: torch.dtype) -> MultiScaleTokens:
    shapes = torch.tensor(LEVELS)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    tokens = torch.randn(batch, int(shapes.prod(1).sum()), CHANNELS).to(device, dtype).requires_grad_()
    return MultiScaleTokens(tokens, tokens, None, tuple(LEVELS), shapes.to(device), starts.to(device), None)


def measure_layer(args: argparse.Namespace, batch: int, queries: int) -> dict[str, object]:
    dtype = getattr(torch, args.dtype)
    memory = make_memory(batch, args.device, dtype)
    attention = DeformableCrossAttention(CHANNELS, HEADS, len(LEVELS), POINTS)
    layer = DecoderLayer(MultiheadAttention(CHANNELS, HEADS), attention, FFN(CHANNELS, HIDDEN), CHANNELS)
    module = RoutedLayer(layer, memory).to(args.device, dtype)
    x, pos = (torch.randn(batch, queries, CHANNELS).to(args.device, dtype).requires_grad_() for _ in range(2))
    reference = torch.rand(batch, queries, 4).to(args.device, dtype)
    keep = half_of(batch, queries, args.device)
    row: dict[str, object] = {"layer": f"{batch} x {queries}"}
    inputs = [x, pos, memory.tokens, *module.parameters()]
    functions = {name: partial(module, x, pos, reference, mask) for name, mask in (("full", None), ("half", keep))}
    for label, times in measure(functions, inputs, args.rounds or 21, args.device).items():
        row |= {f"{name} {label} ms": time for name, time in times.items()}
        row[f"{label} half/full"] = times["half"] / times["full"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--queries", nargs="+", type=int, default=QUERIES)
    parser.add_argument("--batch", nargs="+", type=int, help="of the layer (default: 1 2; 1 4 16 on a GPU)")
    parser.add_argument("--rounds", type=int, help="measurements per median (default: 101; 21 for the layer)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if not has_kernel("query_gather", args.device):
        parser.error(f"no compiled kernel for {args.device}: {extension_info()}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    where = machine(args.device) | {"extension": extension_info(), "dtype": args.dtype}
    routing = [measure_routing(args, batch, queries) for batch in ROUTING_BATCHES for queries in args.queries]
    print_table(routing)
    batches = args.batch or ([1, 2] if args.device == "cpu" else [1, 4, 16])
    layers = [measure_layer(args, batch, queries) for batch in batches for queries in args.queries]
    print_table(layers)
    sizes = {"levels": LEVELS, "channels": CHANNELS, "heads": HEADS, "points": POINTS, "ffn": HIDDEN, "kept": 0.5}
    content = {"machine": where, "sizes": sizes, "routing": routing, "decoder layer": layers}
    print("written:", write_json(f"query_routing_{args.device}_{args.dtype}", content))


if __name__ == "__main__":
    main()
