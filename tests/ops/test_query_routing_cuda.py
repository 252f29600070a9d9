"""The CUDA kernels of query routing against the CPU ones; `make gpu-check` runs them."""

import pytest
import torch

from detrx.ops import has_kernel, query_gather, query_route, query_scatter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not has_kernel("query_gather", "cuda"), reason="no compiled CUDA kernel"),
]


def results(device: str, keep: torch.Tensor, tensors: list[torch.Tensor], capacity: int | None) -> list[torch.Tensor]:
    """Route, packed rows, scattered rows and gradients of the floating-point tensors."""
    inputs = [x.to(device).requires_grad_(x.is_floating_point()) for x in tensors]
    route = query_route(keep.to(device), capacity)
    packed, *_ = query_gather(inputs, route)
    changed = [p.cos() if p.is_floating_point() else p.bitwise_not() for p in packed]
    scattered = query_scatter(inputs, changed, *route)
    floating = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    loss = sum((scattered[i].double() * (i + 1)).square().sum() for i in floating)
    gradients = torch.autograd.grad(loss, [inputs[i] for i in floating])
    return [x.detach().cpu() for x in (*route, *packed, *scattered, *gradients)]


@pytest.mark.parametrize("capacity", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch,queries", [(1, 1), (3, 11), (2, 300), (5, 1025), (0, 7), (2, 0)])
def test_matches_cpu(batch, queries, share, capacity):
    keep = torch.rand(batch, queries) < share
    tensors = [torch.randn(batch, queries, c) for c in (1, 3, 4, 255, 256, 0)]  # rows of 4, 12, 16, ... bytes
    tensors += [torch.randn(batch, queries, 4, 4, dtype=torch.float64), torch.randn(batch, queries)]
    tensors += [torch.randn(batch, queries, c).to(torch.bfloat16) for c in (1, 8)]  # more than fit in a launch
    tensors += [keep, torch.randint(100, (batch, queries, 5), dtype=torch.int64)]
    slots = queries if capacity else None
    for ours, expected in zip(results("cuda", keep, tensors, slots), results("cpu", keep, tensors, slots), strict=True):
        torch.testing.assert_close(ours, expected)


def test_unaligned_and_strided_rows():
    x, keep = torch.randn(2, 50, 41), torch.rand(2, 50) < 0.5
    on_gpu = x.cuda()
    for view in (slice(1, 37), slice(0, 40), slice(2, 40, 2)):
        packed, *route = query_gather(on_gpu[:, 3:, view], keep[:, 3:].cuda())
        expected, *cpu_route = query_gather(x[:, 3:, view], keep[:, 3:])
        assert torch.equal(packed.cpu(), expected)
        scattered = query_scatter(on_gpu[:, 3:, view], 2 * packed, *route)
        assert torch.equal(scattered.cpu(), query_scatter(x[:, 3:, view], 2 * expected, *cpu_route))


def test_no_host_synchronisation_with_a_capacity():
    x, keep = torch.randn(2, 50, 8, device="cuda", requires_grad=True), torch.rand(2, 50, device="cuda") < 0.5
    query_scatter(x, *query_gather(x, query_route(keep, 50))).sum().backward()  # first use may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        query_scatter(x, *query_gather(x, query_route(keep, 50))).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_current_stream():
    x, keep = torch.randn(4, 300, 256, device="cuda"), torch.rand(4, 300, device="cuda") < 0.5
    expected = query_gather(x, keep)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = query_gather(x, keep)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
