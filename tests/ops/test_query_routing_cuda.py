"""The CUDA kernels of query routing against the CPU ones, on a GPU (`make gpu-check`) and emulated."""

import pytest
import torch
from torch import Tensor

from detrx.ops import query_gather, query_route, query_scatter
from tests.cuda_on_cpu.emulation import EmulationError
from tests.ops.places import CPU, Place


def results(
    place: Place, keep: Tensor, tensors: list[Tensor], capacity: int | None, **kernels: int | bool
) -> list[list[Tensor]]:
    """Route, packed rows, scattered rows and gradients of the floating-point tensors."""
    with place.kernels(**kernels):
        inputs = [place.put(x).requires_grad_(x.is_floating_point()) for x in tensors]
        route = query_route(place.put(keep), capacity)
        packed, *_ = query_gather(inputs, route)
        changed = [-p if p.is_floating_point() else p.bitwise_not() for p in packed]
        scattered = query_scatter(inputs, changed, *route)
        floating = [i for i, x in enumerate(inputs) if x.is_floating_point()]
        loss = sum((scattered[i].double() * (i + 1)).sum() + packed[i].double().sum() for i in floating)
        gradients = torch.autograd.grad(loss, [inputs[i] for i in floating])
        return [[x.detach().cpu() for x in xs] for xs in (route, packed, scattered, gradients)]


def assert_matches_cpu(
    place: Place, keep: Tensor, tensors: list[Tensor], capacity: int | None = None, **kernels: int | bool
) -> None:
    """Rows are only copied: to the last bit."""
    ours, expected = results(place, keep, tensors, capacity, **kernels), results(CPU, keep, tensors, capacity)
    for xs, ys in zip(ours, expected, strict=True):
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(xs, ys, strict=True))


def make_tensors(keep: Tensor) -> list[Tensor]:
    """Rows of 1, 2, 4, 6, 7, 12, 16, ... bytes; more of them than fit in a launch."""
    shape = keep.shape
    tensors = [torch.randn(*shape, channels) for channels in (1, 3, 4, 255, 256, 0)]
    tensors += [torch.randn(*shape, 4, 4, dtype=torch.float64), torch.randn(shape)]
    tensors += [torch.randn(*shape, channels).to(torch.bfloat16) for channels in (1, 3, 8, 40)]
    return [*tensors, keep, torch.rand(*shape, 7) < 0.5, torch.randint(100, (*shape, 5))]


@pytest.mark.parametrize("capacity", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch,queries", [(1, 1), (3, 11), (2, 16), (2, 17), (2, 300), (1, 1025), (0, 7), (2, 0)])
def test_matches_cpu(cuda, batch, queries, share, capacity):
    keep = torch.rand(batch, queries) < share
    tensors = make_tensors(keep)
    if cuda.emulated and queries > 100:
        tensors = tensors[::4]
    assert_matches_cpu(cuda, keep, tensors, queries if capacity else None)


def test_none_and_all_in_one_batch(cuda):
    queries = torch.arange(600)
    keep = torch.stack([queries >= 0, queries < 0, torch.rand(600) < 0.5, queries % 2 == 0])
    for capacity in (None, 600):
        assert_matches_cpu(cuda, keep, [torch.randn(4, 600, 3)], capacity)


@pytest.mark.parametrize("queries", [6000, 8191, 8193, 22223])
def test_many_queries(cuda_once, queries):
    """More than a block lists, and more slots than every block can look through."""
    keep = torch.rand(1, queries) < 0.9
    assert_matches_cpu(cuda_once, keep, [torch.randn(1, queries, 3)], check=queries < 8000)


def test_unaligned_and_strided_rows(cuda):
    x, keep = torch.randn(2, 50, 41), torch.rand(2, 50) < 0.5
    views = [
        lambda t: t[:, 3:, 1:37],
        lambda t: t[:, 3:, 0:40],
        lambda t: t[:, 3:, 2:40:2],
        lambda t: t[:, 3:].transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: t[:, :1].expand(2, 47, 41),
    ]
    for view in views:
        found = []
        for place in (cuda, CPU):
            with place.kernels():
                rows = view(place.put(x))
                packed, *route = query_gather(rows, place.put(keep)[:, 3:])
                found.append([packed.cpu(), query_scatter(rows, 2 * packed, *route).cpu()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# What only the emulation can do: few blocks, so that each works on many rows, and assertions, after which a process
# cannot use its GPU any more.


@pytest.mark.parametrize("max_blocks", [1, 2, 3])
@pytest.mark.parametrize("batch,queries", [(3, 11), (2, 300), (5, 130)])
def test_more_rows_than_blocks(emulated, batch, queries, max_blocks):
    keep = torch.rand(batch, queries) < 0.5
    tensors = [torch.randn(batch, queries, c) for c in (4, 40)] + [torch.rand(batch, queries) < 0.5]
    for capacity in (None, queries):
        assert_matches_cpu(emulated, keep, tensors, capacity, max_blocks=max_blocks)


@pytest.mark.parametrize(
    "index,scatter,message",
    [
        ([[4]], False, "index is out of range"),
        ([[-1]], False, "index is out of range"),
        ([[4]], True, "index is out of range"),
        ([[1, 1]], True, "index has a query twice"),
    ],
)
def test_route_that_does_not_exist(emulated, index, scatter, message):
    with emulated.kernels(), pytest.raises(EmulationError, match=message):
        x, route = emulated.put(torch.randn(1, 4, 3)), emulated.put(torch.tensor(index))
        valid = torch.ones_like(route, dtype=torch.bool)
        if scatter:
            query_scatter(x, emulated.put(torch.randn(1, route.shape[1], 3)), route, valid)
        else:
            query_gather(x, (route, valid))


def test_capacity_that_is_too_small(emulated):
    # So many queries that every thread keeps some: whichever comes first would write beyond the capacity.
    with emulated.kernels(), pytest.raises(EmulationError, match="capacity") as caught:
        query_route(emulated.put(torch.ones(1, 8192, dtype=torch.bool)), 1)
    assert all(finding not in str(caught.value) for finding in ("out of bounds", "outside", "race"))


# What only a GPU can do.


@pytest.mark.gpu
def test_no_host_synchronisation_with_a_capacity(gpu):
    x, keep = torch.randn(2, 50, 8, device="cuda", requires_grad=True), torch.rand(2, 50, device="cuda") < 0.5
    query_scatter(x, *query_gather(x, query_route(keep, 50))).sum().backward()  # first use may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        query_scatter(x, *query_gather(x, query_route(keep, 50))).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_current_stream(gpu):
    x, keep = torch.randn(4, 300, 256, device="cuda"), torch.rand(4, 300, device="cuda") < 0.5
    expected = query_gather(x, keep)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = query_gather(x, keep)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
