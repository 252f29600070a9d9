#!/usr/bin/env python3
"""Mixture-of-experts FFN against a loop over the experts with boolean masks, and a dense FFN of equal active FLOPs.

Shapes: "encoder" is one image of 14,400 tokens, "batch" two of them, "decoder" 900 queries; 8 experts, 2 per token,
each with half of the hidden channels of the dense FFN. On the CPU, oneDNN multiplies the float32 matrices of the MoE;
the other two use `nn.Linear`, for which torch takes MKL: part of the difference on AMD processors.
"""

import argparse
from collections.abc import Callable

import torch
from harness import device_medians, machine, print_table, write_json
from torch import Tensor, nn

from detrx.layers import FFN, MoEFFN
from detrx.ops import extension_info, has_kernel

CHANNELS, HIDDEN, EXPERTS, TOP_K = 256, 512, 8, 2
TOKENS = {"encoder": 14400, "batch": 28800, "decoder": 900}


class MaskedLoop(nn.Module):
    """The usual implementation: for each expert, select its tokens with a mask, run its FFN, add to the output."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(CHANNELS, EXPERTS, bias=False)
        self.experts = nn.ModuleList(FFN(CHANNELS, HIDDEN) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(TOP_K)
        weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mask = chosen == index
            rows = mask.any(-1)
            if rows.any():
                weight = (weights * mask).sum(-1, keepdim=True)[rows]
                output[rows] += (weight * expert(x[rows])).to(output.dtype)
        return output


def make_modules(device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The three modules; the loop has the weights of the MoE."""
    torch.manual_seed(0)
    moe, loop, dense = MoEFFN(CHANNELS, HIDDEN, EXPERTS, TOP_K), MaskedLoop(), FFN(CHANNELS, TOP_K * HIDDEN)
    with torch.no_grad():
        loop.gate.weight.copy_(moe.gates[0].weight)
        for index, expert in enumerate(loop.experts):
            expert.linear1.weight.copy_(moe.weight1[index].t())
            expert.linear1.bias.copy_(moe.bias1[index])
            expert.linear2.weight.copy_(moe.weight2[index].t())
            expert.linear2.bias.copy_(moe.bias2[index])
    return {name: m.to(device, dtype) for name, m in (("moe", moe), ("loop", loop), ("dense", dense))}


def call(module: nn.Module, x: Tensor) -> Tensor:
    output = module(x)
    return output[0] if isinstance(output, tuple) else output


def forward(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        call(module, x)


def forward_backward(module: nn.Module, x: Tensor) -> None:
    output = call(module, x)
    torch.autograd.grad(output, [x, *module.parameters()], torch.ones_like(output), allow_unused=True)


def measure(args: argparse.Namespace, shape: str, modules: dict[str, nn.Module]) -> dict[str, object]:
    dtype = getattr(torch, args.dtype)
    x = torch.randn(TOKENS[shape], CHANNELS, generator=torch.Generator().manual_seed(0))
    x = x.to(args.device, dtype).requires_grad_()
    if dtype == torch.float32:
        torch.testing.assert_close(call(modules["moe"], x), call(modules["loop"], x), rtol=1e-3, atol=1e-3)
    row: dict[str, object] = {"shape": shape}
    runs: list[tuple[str, Callable]] = [("fwd", forward), ("fwd+bwd", forward_backward)]
    for label, run in runs:
        calls = {name: lambda module=module, run=run: run(module, x) for name, module in modules.items()}
        times = device_medians(calls, args.rounds, args.device)
        row |= {f"{label} ms": times["moe"], f"loop {label} ms": times["loop"], f"dense {label} ms": times["dense"]}
        row |= {f"{label} loop/moe": times["loop"] / times["moe"], f"{label} moe/dense": times["moe"] / times["dense"]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--shapes", nargs="+", choices=list(TOKENS), default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=11, help="measurements per median (default: 11)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if not has_kernel("moe_route", args.device):
        parser.error(f"no compiled kernel for {args.device}: {extension_info()}")
    torch.set_num_threads(args.threads)

    where = machine(args.device) | {"extension": extension_info(), "dtype": args.dtype}
    modules = make_modules(args.device, getattr(torch, args.dtype))
    rows = [measure(args, shape, modules) for shape in args.shapes]
    print_table(rows)
    sizes = {"tokens": TOKENS, "channels": CHANNELS, "hidden": HIDDEN, "experts": EXPERTS, "top_k": TOP_K}
    content = {"machine": where, "sizes": sizes, "results": rows}
    print("written:", write_json(f"moe_{args.device}_{args.dtype}", content))


if __name__ == "__main__":
    main()
