"""The CUDA kernels of the MoE operators, and MoEFFN on a GPU, against the CPU; `make gpu-check` runs them."""

import pytest
import torch

from detrx.layers import MoEFFN
from detrx.ops import expert_linear, has_kernel, moe_combine, moe_dispatch, moe_route

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not has_kernel("moe_route", "cuda"), reason="no compiled CUDA kernel"),
]
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)]


def on(device: str, dtype: torch.dtype, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Rounded to `dtype` first, then in float64 on the CPU: all that remains is the error of the computation."""
    return [
        t.to(dtype).to(device, torch.float64 if device == "cpu" else dtype).detach().requires_grad_() for t in tensors
    ]


@pytest.mark.parametrize("tokens,experts,k", [(1, 1, 1), (1000, 8, 2), (33, 33, 5), (200, 256, 8), (300000, 70, 8)])
@pytest.mark.parametrize("dtype,tolerance", DTYPES)
def test_route_matches_cpu(tokens, experts, k, dtype, tolerance):
    # Multiples of 1/16: many ties, and no rounding.
    logits, direction = (torch.randn(tokens, n).mul(16).round().div(16) for n in (experts, k))
    results = []
    for device in ("cuda", "cpu"):
        (l, d) = on(device, dtype, logits, direction)
        routing = moe_route(l, k)
        results.append([*routing, *torch.autograd.grad(routing.weights, l, d)])
    for ours, expected in zip(*results, strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours.cpu().double(), expected, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(ours.cpu(), expected)


def test_logits_that_are_not_finite():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[-inf, 0.0, -inf], [1.0, nan, 2.0], [nan, 0.0, nan], [-inf, -inf, -inf]])
    for ours, expected in zip(moe_route(logits.cuda(), 2), moe_route(logits, 2), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, equal_nan=True)


@pytest.mark.parametrize("channels", [1, 3, 8, 256, 1000])
@pytest.mark.parametrize("tokens,k", [(77, 2), (5000, 3), (20, 8)])
@pytest.mark.parametrize("dtype,tolerance", DTYPES)
def test_dispatch_and_combine_match_cpu(channels, tokens, k, dtype, tolerance):
    *_, order, place = moe_route(torch.randn(tokens, 8), k)
    x, y, weights = torch.randn(tokens, channels), torch.randn(tokens * k, channels), torch.rand(tokens, k)
    results = []
    for device in ("cuda", "cpu"):
        (a, b, w), places = on(device, dtype, x, y, weights), (order.to(device), place.to(device))
        dispatched, combined = moe_dispatch(a, *places), moe_combine(b, w, *places)
        gradients = torch.autograd.grad(dispatched, a, b.detach())
        gradients += torch.autograd.grad(combined, (b, w), a.detach())
        results.append([t.cpu().double() for t in (dispatched, combined, *gradients)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * channels**0.5)


def test_rows_that_are_not_aligned():
    *_, order, place = moe_route(torch.randn(50, 4, device="cuda"), 2)
    x = torch.randn(50 * 8 + 1, device="cuda")[1:].view(50, 8)
    y = torch.randn(100 * 8 + 1, device="cuda")[1:].view(100, 8)
    weights = torch.rand(50, 2, device="cuda")
    assert torch.equal(moe_dispatch(x, order, place), moe_dispatch(x.clone(), order, place))
    assert torch.equal(moe_combine(y, weights, order, place), moe_combine(y.clone(), weights, order, place))


def test_no_tokens():
    logits = torch.randn(0, 4, device="cuda", requires_grad=True)
    weights, _, counts, ends, order, place = moe_route(logits, 2)
    assert counts.tolist() == ends.tolist() == [0] * 4 and order.shape == (0,)
    x = torch.randn(0, 8, device="cuda", requires_grad=True)
    moe_combine(moe_dispatch(x, order, place), weights, order, place).sum().backward()
    assert x.grad.shape == (0, 8) and logits.grad.shape == (0, 4)


def test_no_synchronisation():
    logits, x = torch.randn(500, 8, device="cuda", requires_grad=True), torch.randn(500, 64, device="cuda")
    x.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights, *_, order, place = moe_route(logits, 2)
        moe_combine(moe_dispatch(x, order, place), weights, order, place).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_repeated_calls_agree_bit_for_bit():
    logits, x = torch.randn(5000, 8, device="cuda"), torch.randn(5000, 64, device="cuda").requires_grad_()
    results = []
    for _ in range(3):
        weights, *_, order, place = moe_route(logits, 2)
        output = moe_combine(moe_dispatch(x, order, place).sin(), weights, order, place)
        results.append([order, output, *torch.autograd.grad(output.square().sum(), x)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[64, 0, 100, 36], [0, 0, 0, 200], [200, 0, 0, 0], [0, 0, 0, 0]])
def test_expert_linear_matches_cpu(dtype, counts):
    rows = sum(counts)
    inputs = torch.randn(rows, 32), torch.randn(4, 32, 48) / 6, torch.randn(4, 48)
    direction = torch.randn(rows, 48)
    results = []
    for device in ("cuda", "cpu"):
        leaves, (d,) = on(device, dtype, *inputs), on(device, dtype, direction)
        ends = torch.tensor(counts, device=device).cumsum(0, dtype=torch.int32)
        output = expert_linear(*leaves, ends, relu=True)
        results.append([t.cpu().double() for t in (output, *torch.autograd.grad(output, leaves, d.detach()))])
    tolerance = 1e-3 if dtype == torch.float32 else 0.15
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="no grouped GEMM"
)
def test_bfloat16_layer_does_not_synchronise():
    moe = MoEFFN(64, 128, 8).to("cuda", torch.bfloat16)
    x = torch.randn(500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    moe(x)[0].sum().backward()  # the first call may load modules
    torch.cuda.set_sync_debug_mode("error")
    try:
        output, load = moe(x)
        (output.sum() + load.balancing_loss()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_layer_matches_cpu():
    moe = MoEFFN(32, 64, 8)
    x = torch.randn(300, 32)
    expected, load = moe(x)
    moe.cuda()
    output, cuda_load = moe(x.cuda())
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(cuda_load.counts.cpu(), load.counts)
