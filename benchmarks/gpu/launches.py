"""Small calls that launch every kernel, in every form that it is compiled in."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detrx.layers import MoEFFN
from detrx.ops import moe_route, ms_deform_attn, ms_deform_attn_fused, query_gather, query_route, query_scatter

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
SHAPES = ((7, 9), (4, 5), (1, 3))
HEADS = 3


@dataclass(frozen=True)
class Launch:
    """A call. `run(device, exact)` gives results and gradients; `exact`: with the same rounded arguments, but computed
    in float32, or in float64 where that is the dtype."""

    name: str
    family: str
    dtype: torch.dtype
    run: Callable[[str, bool], list[Tensor]]

    def difference(self, device: str) -> float:
        """The largest difference from the CPU in units of what is tolerated: up to 1 is equal.

        Raises:
            AssertionError: a result that has to be the same is not, or one is not finite.
        """
        worst = 0.0
        for ours, expected in zip(self.run(device, False), self.run("cpu", True), strict=True):
            ours = ours.cpu()
            if not ours.is_floating_point():
                assert torch.equal(ours, expected), f"{self.name}: integers differ"
                continue
            assert ours.isfinite().all(), f"{self.name}: not finite"
            scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
            error = (ours.double() - expected.double()).abs().max().item() if ours.numel() else 0.0
            worst = max(worst, error / (scale * TOLERANCE[self.dtype]))
        return worst


def _leaf(x: Tensor, device: str, dtype: torch.dtype, exact: bool) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    return x.to(dtype).to(device, wide if exact else dtype).detach().requires_grad_()


def attention(kind: str, dtype: torch.dtype, channels: int, points: int = 4, deterministic: bool = False) -> Launch:
    """`kind`: "unfused", or the fused operator by its reference, "points" or "boxes"."""
    generator = torch.Generator().manual_seed(channels)
    queries, batch, levels = 37, 2, len(SHAPES)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, tokens, HEADS, channels, generator=generator)
    logits = torch.randn(batch, queries, HEADS, levels, points, generator=generator)
    direction = torch.randn(batch, queries, HEADS * channels, generator=generator)
    reference = torch.rand(batch, queries, levels, 4 if kind == "boxes" else 2, generator=generator)
    offsets = points * torch.randn(batch, queries, HEADS, levels, points, 2, generator=generator)

    def run(device: str, exact: bool) -> list[Tensor]:
        shapes = torch.tensor(SHAPES)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        geometry = [shapes.to(device), starts.to(device)]
        if kind == "unfused":
            locations = torch.rand(offsets.shape, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.3
            leaves = [_leaf(x, device, dtype, exact) for x in (value, locations, logits)]
            output = ms_deform_attn(leaves[0], *geometry, *leaves[1:])
        else:
            leaves = [_leaf(x, device, dtype, exact) for x in (value, offsets, logits)]
            precise = reference.to(device, torch.promote_types(dtype, torch.float32)).requires_grad_()
            output = ms_deform_attn_fused(leaves[0], *geometry, precise, *leaves[1:])
            leaves.append(precise)
        direction_here = _leaf(direction, device, dtype, exact).detach()
        if not deterministic or exact:
            return [output, *torch.autograd.grad(output, leaves, direction_here)]
        torch.use_deterministic_algorithms(True)
        try:
            return [output, *torch.autograd.grad(output, leaves, direction_here)]
        finally:
            torch.use_deterministic_algorithms(False)

    name = f"attention {kind} {_short(dtype)} D={channels}" + (f" P={points}" if points != 4 else "")
    return Launch(name + (" deterministic" if deterministic else ""), "ms_deform_attn", dtype, run)


def experts(dtype: torch.dtype, num_experts: int, k: int, channels: int, tokens: int = 70) -> Launch:
    """The routing, and a mixture of experts with its products, forward and backward. Some experts get nothing."""
    generator = torch.Generator().manual_seed(num_experts)
    # Multiples of 1/16: many ties, and no rounding.
    logits = torch.randn(tokens, num_experts, generator=generator).mul(16).round().div(16)
    logits[:, num_experts // 2 :: 3] -= 100 if num_experts > 3 * k else 0
    x = torch.randn(tokens, channels, generator=generator)
    direction = torch.randn(tokens, channels, generator=generator)
    mixture = MoEFFN(channels, 2 * channels, num_experts, k).to(dtype)

    def run(device: str, exact: bool) -> list[Tensor]:
        gate, rows = (_leaf(each, device, dtype, exact) for each in (logits, x))
        routing = moe_route(gate, k)
        layer = copy.deepcopy(mixture).to(device, gate.dtype)
        output, counts = layer.mix(rows, gate)
        leaves = [gate, rows, layer.weight1, layer.bias1, layer.weight2, layer.bias2]
        gradients = torch.autograd.grad(output, leaves, _leaf(direction, device, dtype, exact).detach())
        return [*routing, counts, output, *gradients]

    return Launch(f"experts {_short(dtype)} E={num_experts} k={k} C={channels}", "moe", dtype, run)


def routing(dtype: torch.dtype, channels: int, capacity: bool, queries: int = 40) -> Launch:
    """Route, gather and scatter, forward and backward; `capacity`: without waiting for the device."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, queries, channels, generator=generator)
    keep = torch.rand(2, queries, generator=generator) < 0.5

    def run(device: str, exact: bool) -> list[Tensor]:
        rows = _leaf(x, device, dtype, exact)
        route = query_route(keep.to(device), queries if capacity else None)
        (packed, index), *_ = query_gather((rows, torch.arange(queries, device=device).repeat(2, 1)), route)
        output = query_scatter(rows, 2 * packed, *route)
        return [*route, index, packed, output, *torch.autograd.grad(output, rows, output.detach())]

    name = f"query routing {_short(dtype)} C={channels}" + (" capacity" if capacity else "")
    return Launch(name, "query_routing", dtype, run)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def launches() -> list[Launch]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    result = [attention(kind, dtype, 32) for dtype in dtypes for kind in ("unfused", "points", "boxes")]
    result += [attention("boxes", dtype, channels) for dtype in dtypes[:2] for channels in (16, 64, 20)]
    result += [attention("points", torch.float32, 32, points=3), attention("points", torch.float64, 32)]
    result += [attention("boxes", dtype, 32, deterministic=True) for dtype in dtypes]
    result += [experts(dtype, 8, 2, 64) for dtype in dtypes]
    result += [experts(torch.float32, 40, 3, 33), experts(torch.float32, 256, 8, 7), experts(torch.float32, 1, 1, 4)]
    result += [routing(torch.float32, 64, True), routing(torch.bfloat16, 33, False), routing(torch.float16, 1, True)]
    return result
