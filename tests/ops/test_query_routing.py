"""detrx.ops.query_route, query_gather and query_scatter, compiled or not, against loops over images and queries."""

import json
import os
import subprocess
import sys

import pytest
import torch

from detrx.ops import (
    QueryRoute,
    has_kernel,
    query_gather,
    query_gather_reference,
    query_route,
    query_route_reference,
    query_scatter,
    query_scatter_reference,
)

COMPILED = has_kernel("query_gather", "cpu")
DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


def make_mask(batch: int = 3, queries: int = 11, share: float = 0.5) -> torch.Tensor:
    return torch.rand(batch, queries) < share


def make_rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = 100 * torch.randn(*shape, dtype=torch.float64)
    return values > 0 if dtype == torch.bool else values.abs().to(dtype)


def looped_gather(x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    positions = [[n for n, kept in enumerate(row) if kept] for row in keep.tolist()]
    slots = max(map(len, positions), default=0)
    packed = torch.zeros(len(x), slots, *x.shape[2:], dtype=x.dtype)
    index, valid = torch.zeros(len(x), slots, dtype=torch.int64), torch.zeros(len(x), slots, dtype=torch.bool)
    for b, row in enumerate(positions):
        for k, n in enumerate(row):
            packed[b, k], index[b, k], valid[b, k] = x[b, n], n, True
    return packed, index, valid


def looped_scatter(base: torch.Tensor, packed: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    output = base.clone()
    for b, row in enumerate(keep.tolist()):
        for k, n in enumerate([n for n, kept in enumerate(row) if kept]):
            output[b, n] = packed[b, k]
    return output


def assert_routes(x: torch.Tensor, keep: torch.Tensor) -> None:
    expected = looped_gather(x, keep)
    found = query_gather(x, keep)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.is_contiguous() and torch.equal(a, b)
    packed = make_rows(*expected[0].shape, dtype=x.dtype)
    scattered = query_scatter(x, packed, *found[1:])
    assert scattered.is_contiguous() and torch.equal(scattered, looped_scatter(x, packed, keep))
    assert torch.equal(query_scatter(x, *found), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trailing", [(), (1,), (3,), (64,), (2, 4), (3, 1, 5)])
def test_matches_loops(dtype, trailing):
    assert_routes(make_rows(3, 11, *trailing, dtype=dtype), make_mask())


@pytest.mark.parametrize("batch,queries", [(1, 1), (1, 700), (5, 33), (2, 300)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_matches_loops_for_any_mask(batch, queries, share):
    assert_routes(make_rows(batch, queries, 7), make_mask(batch, queries, share))


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)])
def test_empty_inputs(shape):
    x = torch.randn(shape, requires_grad=True)
    keep = torch.ones(shape[:2], dtype=torch.bool)
    packed, index, valid = query_gather(x, keep)
    slots = shape[1] if shape[0] else 0
    assert packed.shape == (shape[0], slots, shape[2]) and index.shape == valid.shape == (shape[0], slots)
    output = query_scatter(x, packed, index, valid)
    assert output.shape == shape
    output.sum().backward()
    assert x.grad.shape == shape


def test_images_that_keep_nothing_or_everything():
    keep = torch.zeros(3, 6, dtype=torch.bool)
    keep[1] = True
    keep[2, 4] = True
    x = torch.randn(3, 6, 2)
    packed, index, valid = query_gather(x, keep)
    assert valid.sum(1).tolist() == [0, 6, 1]
    assert not packed[0].any() and torch.equal(packed[1], x[1]) and torch.equal(packed[2, :1], x[2, 4:5])
    assert index[1].tolist() == list(range(6)) and index[2].tolist() == [4, 0, 0, 0, 0, 0]
    output = query_scatter(x, packed + 1, index, valid)
    assert torch.equal(output[0], x[0]) and torch.equal(output[1], x[1] + 1)
    assert torch.equal(output[2] != x[2], torch.arange(6)[:, None].expand(6, 2) == 4)


def test_padding_is_zero_and_ignored():
    keep = torch.tensor([[True, True, False], [False, False, True]])
    x = torch.full((2, 3, 4), float("nan"))
    x[1, 2] = 1.0
    packed, index, valid = query_gather(x, keep)
    assert torch.equal(packed[1], torch.tensor([[1.0] * 4, [0.0] * 4]))
    packed[1, 1] = float("nan")
    assert not query_scatter(torch.zeros(2, 3, 4), packed, index, valid)[1].isnan().any()


def test_several_tensors_share_a_route():
    keep = make_mask()
    route = query_route(keep)
    assert isinstance(route, QueryRoute)
    tensors = [make_rows(3, 11, 8), make_rows(3, 11, 4, 4, dtype=torch.float64), keep]
    packed, index, valid = query_gather(tensors, route)
    assert index is route.index and valid is route.valid
    for ours, tensor in zip(packed, tensors, strict=True):
        assert torch.equal(ours, query_gather(tensor, keep)[0])
    assert torch.equal(packed[2], valid)
    changed = [make_rows(*p.shape, dtype=p.dtype) for p in packed]
    for ours, base, rows in zip(query_scatter(tensors, changed, *route), tensors, changed, strict=True):
        assert torch.equal(ours, looped_scatter(base, rows, keep))


def test_capacity():
    keep = torch.tensor([[True, False, True, False], [False, False, False, True]])
    wide = query_route(keep, capacity=4)
    assert wide.index.tolist() == [[0, 2, 0, 0], [3, 0, 0, 0]] and wide.valid.sum(1).tolist() == [2, 1]
    x = torch.randn(2, 4, 3)
    packed, index, valid = query_gather(x, wide)
    assert torch.equal(packed[:, :2], query_gather(x, keep)[0]) and not packed[:, 2:].any()
    assert torch.equal(query_scatter(x, 2 * packed, index, valid), torch.where(keep[..., None], 2 * x, x))
    assert query_route(torch.zeros(2, 4, dtype=torch.bool), capacity=0).index.shape == (2, 0)
    with pytest.raises(ValueError, match=r"capacity is 1, .* keeps 2"):
        query_route(keep, capacity=1)


def test_any_order_of_slots():
    x = torch.randn(1, 5, 2)
    index, valid = torch.tensor([[4, 9, 1]]), torch.tensor([[True, False, True]])
    packed, *_ = query_gather(x, (index, valid))
    assert torch.equal(packed[0], torch.stack([x[0, 4], torch.zeros(2), x[0, 1]]))
    assert torch.equal(query_scatter(torch.zeros_like(x), packed, index, valid)[0, [1, 4]], x[0, [1, 4]])


@pytest.mark.parametrize("view", ["slice", "transpose", "expand", "step"])
def test_non_contiguous_inputs(view):
    keep = make_mask()

    def strided(rows: int) -> torch.Tensor:
        return {
            "slice": lambda: torch.randn(3, rows + 7, 6)[:, 2 : 2 + rows, 1:5],
            "transpose": lambda: torch.randn(4, rows, 3).transpose(0, 2),
            "expand": lambda: torch.randn(3, rows, 1).expand(3, rows, 4),
            "step": lambda: torch.randn(3, 2 * rows, 8)[:, ::2, ::2],
        }[view]()

    x, index, valid = strided(11), *query_route(keep)
    assert not x.is_contiguous()
    assert torch.equal(query_gather(x, keep.t().contiguous().t())[0], query_gather(x.contiguous(), keep)[0])
    packed = strided(index.shape[1])
    expected = query_scatter(x.contiguous(), packed.contiguous(), index, valid)
    assert torch.equal(query_scatter(x, packed, index.t().contiguous().t(), valid.t().contiguous().t()), expected)


def test_gradients():
    keep = make_mask(2, 7)
    x, y, base = (torch.randn(2, 7, *c, dtype=torch.float64, requires_grad=True) for c in ((3,), (2, 2), (3,)))
    route = query_route(keep)

    def routed(x, y, base):
        (a, b), index, valid = query_gather([x, y], route)
        return *query_scatter([base, y], [a.sin(), b.square()], index, valid), a

    assert torch.autograd.gradcheck(routed, (x, y, base))
    assert torch.autograd.gradgradcheck(routed, (x, y, base))


def test_gradients_go_where_the_rows_came_from():
    keep = torch.tensor([[True, False, True], [False, True, False]])
    base = torch.zeros(2, 3, 1, requires_grad=True)
    x = torch.zeros(2, 3, 1, requires_grad=True)
    packed, index, valid = query_gather(x, keep)
    packed.retain_grad()
    weights = torch.arange(1.0, 7.0).view(2, 3, 1)
    (query_scatter(base, packed, index, valid) * weights).sum().backward()
    assert torch.equal(base.grad, weights.masked_fill(keep[..., None], 0.0))
    assert torch.equal(x.grad, weights.masked_fill(~keep[..., None], 0.0))
    assert packed.grad.flatten().tolist() == [1.0, 3.0, 5.0, 0.0]


def test_gradients_of_some_tensors_only():
    keep = make_mask()
    x, frozen = torch.randn(3, 11, 2, requires_grad=True), torch.randn(3, 11, 2)
    (a, b, _, flags), index, valid = query_gather([x, frozen, x, keep], keep)
    assert not flags.requires_grad
    outputs = query_scatter([frozen, x], [a, b], index, valid)
    outputs[0].sum().backward()  # neither outputs[1] nor the second copy of x has a gradient
    assert torch.equal(x.grad, keep[..., None].float().expand(3, 11, 2))


@pytest.mark.parametrize("capacity", [None, 11])
def test_references_match(capacity):
    keep = make_mask()
    ours, expected = torch.ops.detrx.query_route(keep, capacity), query_route_reference(keep, capacity)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    tensors = [torch.randn(3, 11, 4), torch.randn(3, 11).to(torch.float16)]
    packed = query_gather(tensors, ours)[0]
    assert all(map(torch.equal, packed, query_gather_reference(tensors, *ours)))
    scattered = query_scatter_reference(tensors, [2 * x for x in packed], *ours)
    assert all(map(torch.equal, query_scatter(tensors, [2 * x for x in packed], *ours), scattered))


def test_operator_registration():
    keep = make_mask()
    index, valid = query_route(keep)
    slots = index.shape[1]
    x = [torch.randn(3, 11, 4, requires_grad=True), torch.randn(3, 11, 2, 2, requires_grad=True)]
    packed = [torch.randn(3, slots, 4, requires_grad=True), torch.randn(3, slots, 2, 2, requires_grad=True)]
    torch.library.opcheck(torch.ops.detrx.query_route.default, (keep,))
    torch.library.opcheck(torch.ops.detrx.query_route.default, (keep, 11))
    torch.library.opcheck(torch.ops.detrx.query_gather.default, (x, index, valid))
    torch.library.opcheck(torch.ops.detrx.query_scatter.default, (x, packed, index, valid))
    torch.library.opcheck(torch.ops.detrx.query_unpack.default, (packed, index, valid, 11))
    torch.library.opcheck(torch.ops.detrx.query_clear.default, (x, index, valid))


class RoutedLayer(torch.nn.Module):
    def __init__(self, capacity: int | None):
        super().__init__()
        self.capacity = capacity
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, pos: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        route = query_route(keep, self.capacity)
        (content, position), index, valid = query_gather((x, pos), route)
        return query_scatter(x, self.linear(content + position), index, valid)


@pytest.mark.parametrize("capacity", [None, 11])
def test_compile_without_graph_breaks(capacity):
    """One graph, also for masks of other counts."""
    module = RoutedLayer(capacity)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for share in (0.5, 0.9, 0.0):
        keep = make_mask(share=share)
        results = []
        for function in (compiled, module):
            x, pos = (torch.arange(3.0 * 11 * 4).view(3, 11, 4).requires_grad_() for _ in range(2))
            output = function(x, pos, keep)
            gradients = torch.autograd.grad(output.square().sum(), (x, pos, *module.parameters()))
            results.append([output, *gradients])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_export():
    keep = make_mask()
    arguments = torch.randn(3, 11, 4), torch.randn(3, 11, 4), keep
    program = torch.export.export(RoutedLayer(None), arguments)
    module = RoutedLayer(None)
    module.load_state_dict(program.state_dict)
    torch.testing.assert_close(program.module()(*arguments[:2], ~keep), module(*arguments[:2], ~keep))


def test_autocast_promotes():
    keep = make_mask()
    x = torch.randn(3, 11, 4)
    packed, index, valid = query_gather(x, keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = query_scatter(x, packed.bfloat16(), index, valid)
    assert output.dtype == torch.float32
    assert torch.equal(output, query_scatter(x, packed.bfloat16().float(), index, valid))


X, KEEP = torch.zeros(3, 11, 4), torch.arange(33).view(3, 11) % 2 == 0
INDEX, VALID = query_route_reference(KEEP)
PACKED = torch.zeros(3, 6, 4)
META = {"index": INDEX.to("meta"), "x": X.to("meta")}
MALFORMED = [
    (query_route, (KEEP[0],), ValueError, r"keep has shape \[11\], expected \(B, N\)"),
    (query_route, (KEEP.float(),), TypeError, r"keep .*\[3, 11\] has dtype torch.float32, expected torch.bool"),
    (query_route, (KEEP, 12), ValueError, r"capacity is 12, .*\[3, 11\]"),
    (query_route, (KEEP, -1), ValueError, r"capacity is -1"),
    (query_gather, ([], KEEP), ValueError, r"x has no tensors"),
    (query_gather, (X[0], KEEP), ValueError, r"x has shape \[11, 4\], .* keep of shape \[3, 11\]"),
    (query_gather, (X[0, 0], KEEP), ValueError, r"x has shape \[4\], .* keep of shape \[3, 11\]"),
    (query_gather, (X[:, :10], KEEP), ValueError, r"x has shape \[3, 10, 4\], expected \(3, 11, ...\)"),
    (query_gather, ([X, X[:, :9]], KEEP), ValueError, r"x\[1\] has shape \[3, 9, 4\], .* keep of shape \[3, 11\]"),
    (query_gather, ([X, X[:, :9]], (INDEX, VALID)), ValueError, r"x\[1\] has shape \[3, 9, 4\]"),
    (query_gather, (X[:2], (INDEX, VALID)), ValueError, r"x has shape \[2, 11, 4\], .* index of shape \[3, 6\]"),
    (query_gather, (X, (INDEX, VALID[:, 1:])), ValueError, r"valid has shape \[3, 5\], index has shape \[3, 6\]"),
    (query_gather, (X, (INDEX[0], VALID[0])), ValueError, r"index has shape \[6\]"),
    (query_gather, (X, (INDEX.int(), VALID)), TypeError, r"index .*\[3, 6\] has dtype torch.int32"),
    (query_gather, (X, (INDEX, VALID.int())), TypeError, r"valid .*\[3, 6\] has dtype torch.int32"),
    (query_gather, (META["x"], KEEP), ValueError, r"x of shape \[3, 11, 4\] is on meta, keep .* on cpu"),
    (query_gather, (X, (META["index"], VALID)), ValueError, r"valid .* is on cpu, index .* on meta"),
    (query_scatter, ([X, X], [PACKED], INDEX, VALID), ValueError, r"packed has 1 tensors, base has 2"),
    (query_scatter, (X, PACKED[:, :5], INDEX, VALID), ValueError, r"packed has shape \[3, 5, 4\].* index .*\[3, 6\]"),
    (query_scatter, (X[:2], PACKED, INDEX, VALID), ValueError, r"base has shape \[2, 11, 4\].* index .*\[3, 6\]"),
    (query_scatter, (X, PACKED[..., :3], INDEX, VALID), ValueError, r"packed .*\[3, 6, 3\].* base .*\[3, 11, 4\]"),
    (query_scatter, (X, PACKED.double(), INDEX, VALID), TypeError, r"packed .*\[3, 6, 4\].*float64.* base .*float32"),
]


@pytest.mark.parametrize("function,arguments,error,message", MALFORMED)
def test_malformed_call(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


OPERATORS = torch.ops.detrx
MALFORMED_OPERATOR_CALLS = [
    (OPERATORS.query_route, (KEEP[0],), ValueError, r"keep has shape \[11\]"),
    (OPERATORS.query_route, (KEEP.float(),), TypeError, r"keep of shape \[3, 11\] has dtype"),
    (OPERATORS.query_route, (KEEP, 12), ValueError, r"capacity is 12, .*\[3, 11\]"),
    (OPERATORS.query_gather, ([], INDEX, VALID), ValueError, r"x has no tensors"),
    (OPERATORS.query_gather, ([X[0, 0]], INDEX, VALID), ValueError, r"x\[0\] has shape \[4\]"),
    (OPERATORS.query_gather, ([X, X[:, 1:]], INDEX, VALID), ValueError, r"x\[1\] has shape \[3, 10, 4\], .*\[3, 6\]"),
    (OPERATORS.query_gather, ([X], INDEX, VALID[1:]), ValueError, r"valid has shape \[2, 6\], expected \[3, 6\]"),
    (OPERATORS.query_gather, ([X], INDEX[0], VALID[0]), ValueError, r"index has shape \[6\]"),
    (OPERATORS.query_gather, ([X], INDEX.int(), VALID), TypeError, r"index of shape \[3, 6\] has dtype"),
    (OPERATORS.query_gather, ([X], INDEX, VALID.int()), TypeError, r"valid of shape \[3, 6\] has dtype"),
    (OPERATORS.query_scatter, ([X], [PACKED[:2]], INDEX, VALID), ValueError, r"packed\[0\] has shape \[2, 6, 4\]"),
    (OPERATORS.query_scatter, ([X], [PACKED[..., 1:]], INDEX, VALID), ValueError, r"packed\[0\] .* base\[0\] of shape"),
    (OPERATORS.query_scatter, ([X], [PACKED.double()], INDEX, VALID), TypeError, r"packed\[0\] of shape .* base\[0\]"),
    (OPERATORS.query_scatter, ([X], [PACKED, PACKED], INDEX, VALID), ValueError, r"packed has 2 tensors, base has 1"),
    (OPERATORS.query_unpack, ([PACKED], INDEX, VALID, -1), ValueError, r"queries is -1"),
    (OPERATORS.query_unpack, ([PACKED], INDEX, VALID, 10), ValueError, r"index\[0, 5\] is 10, expected 0 to 9"),
    (OPERATORS.query_unpack, ([X], INDEX, VALID, 11), ValueError, r"packed\[0\] has shape \[3, 11, 4\], .*\[3, 6\]"),
    (OPERATORS.query_route, (KEEP[:1, :1].expand(2**16, 2**16),), ValueError, r"65536 images of 65536 queries"),
    (
        OPERATORS.query_gather,
        ([X[:1, :1, 0].expand(1, 2**31)], INDEX[:1], VALID[:1]),
        ValueError,
        r"1 images of 2147483648 queries",
    ),
    (
        OPERATORS.query_gather,
        ([X[:1]], INDEX[:1, :1].expand(1, 2**31), VALID[:1, :1].expand(1, 2**31)),
        ValueError,
        r"1 images of 2147483648 slots",
    ),
    (OPERATORS.query_clear, ([X[1:]], INDEX, VALID), ValueError, r"x\[0\] has shape \[2, 11, 4\], .*\[3, 6\]"),
]


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
@pytest.mark.parametrize("operator,arguments,error,message", MALFORMED_OPERATOR_CALLS)
def test_malformed_call_of_the_operator(operator, arguments, error, message):
    """The kernels check for themselves: torch.ops can be called without the Python functions."""
    with pytest.raises(error, match=message):
        operator(*arguments)


@pytest.mark.skipif(not COMPILED, reason="PyTorch's own errors without a kernel")
@pytest.mark.parametrize("query,message", [(11, r"index\[1, 2\] is 11, expected 0 to 10"), (-1, r"is -1")])
def test_index_out_of_range(query, message):
    index = INDEX.clone()
    index[1, 2] = query
    with pytest.raises(ValueError, match=message):
        query_gather(X, (index, VALID))
    with pytest.raises(ValueError, match=message):
        query_scatter(X, PACKED, index, VALID)
    index[1, 2] = index[1, 0]
    with pytest.raises(ValueError, match=r"index\[1\] has query 1 at 0 and at 2"):
        query_scatter(X, PACKED, index, VALID)


@pytest.mark.skipif(not COMPILED, reason="PyTorch's own errors without a kernel")
def test_a_query_in_two_slots_can_be_read_only():
    x = torch.randn(1, 5, 2, requires_grad=True)
    packed, index, valid = query_gather(x, (torch.tensor([[4, 1, 4]]), torch.ones(1, 3, dtype=torch.bool)))
    assert torch.equal(packed, x[:, [4, 1, 4]])
    for use in (lambda: query_scatter(x, packed, index, valid), lambda: packed.sum().backward()):
        with pytest.raises(ValueError, match=r"index\[0\] has query 4 at 0 and at 2"):
            use()


def test_the_number_of_threads_changes_nothing():
    x, keep = torch.randn(4, 900, 64), make_mask(4, 900)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_routes(x, keep)
    finally:
        torch.set_num_threads(before)


FALLBACK = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from detrx.ops import has_kernel, query_gather, query_scatter
    x = torch.arange(24.0).view(2, 4, 3).requires_grad_()
    keep = torch.tensor([[True, False, False, True], [False, False, True, False]])
    (packed, flags), index, valid = query_gather([x, keep], keep)
    output = query_scatter(x, 2 * packed, index, valid)
    output.sum().backward()
names = ("route", "gather", "scatter", "unpack", "clear")
print(json.dumps({
    "kernel": has_kernel("query_gather", "cpu"),
    "values": [t.tolist() for t in (packed, flags, index, valid, output, x.grad)],
    "schemas": [str(getattr(torch.ops.detrx, "query_" + name).default._schema) for name in names],
    "warnings": len([w for w in caught if "no compiled kernels for cpu" in str(w.message)]),
}))
"""


def test_fallback_without_extension():
    results = []
    for disabled in "01":
        environment = {**os.environ, "DETRX_DISABLE_EXT": disabled}
        command = [sys.executable, "-c", FALLBACK]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    ours, fallback = results
    assert not fallback["kernel"] and fallback["warnings"] == 1
    assert ours["values"] == fallback["values"] and ours["schemas"] == fallback["schemas"]
