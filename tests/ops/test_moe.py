"""The operators moe_route, moe_dispatch and moe_combine, compiled or not, against their PyTorch references."""

import os
import subprocess
import sys

import pytest
import torch

from detrx.ops import (
    has_kernel,
    moe_combine,
    moe_combine_reference,
    moe_dispatch,
    moe_dispatch_reference,
    moe_route,
    moe_route_reference,
)

COMPILED = has_kernel("moe_route", "cpu")
SIZES = [(1, 1, 1), (7, 3, 2), (50, 8, 2), (33, 5, 5), (13, 256, 8), (9001, 4, 3), (300, 8, 8)]


def random_places(tokens: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`order` and `place` of a routing."""
    return moe_route(torch.randn(tokens, max(k, 4)), k)[-2:]


@pytest.mark.parametrize("tokens,experts,k", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_route_matches_reference(tokens, experts, k, dtype):
    logits = torch.randn(tokens, experts).to(dtype).requires_grad_()
    direction = torch.randn(tokens, k).to(dtype)
    results = []
    for function in (moe_route, moe_route_reference):
        routing = function(logits, k)
        results.append((*routing, *torch.autograd.grad(routing.weights, logits, direction)))
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    for ours, expected in zip(*results, strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        else:
            assert ours.dtype == expected.dtype and torch.equal(ours, expected)


def test_route_is_what_it_says():
    logits = torch.randn(40, 6, dtype=torch.float64)
    weights, experts, counts, ends, order, place = moe_route(logits, 3)
    probabilities, chosen = logits.softmax(1).topk(3)
    assert torch.equal(experts, chosen)
    torch.testing.assert_close(weights, probabilities / probabilities.sum(1, keepdim=True))
    assert torch.equal(counts, experts.flatten().bincount(minlength=6))
    in_order = experts.flatten()[order]
    assert (in_order.diff() >= 0).all()
    assert (order.diff()[in_order.diff() == 0] > 0).all()  # stable
    assert torch.equal(ends, counts.cumsum(0).int()) and torch.equal(order[place].flatten(), torch.arange(120))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_ties_go_to_the_lower_expert(k):
    routing = moe_route(torch.zeros(5, 6), k)
    assert torch.equal(routing.experts, torch.arange(k).expand(5, k))
    torch.testing.assert_close(routing.weights, torch.full((5, k), 1 / k))
    assert moe_route(torch.tensor([[0.0, 1.0, 0.0, 1.0, -0.0]]), 4).experts.tolist() == [[1, 3, 0, 2]]


def test_logits_that_are_not_finite():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[-inf, 0.0, -inf], [1.0, nan, 2.0], [nan, 0.0, nan], [1e30, -1e30, 0.0]])
    routing = moe_route(logits, 2)
    for ours, expected in zip(routing, moe_route_reference(logits, 2), strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)
    assert routing.experts.tolist() == [[1, 0], [1, 2], [0, 2], [0, 2]] and routing.counts.tolist() == [3, 2, 3]
    weights = routing.weights
    assert weights[0].tolist() == [1, 0] and weights[1].isnan().all() and weights[3].tolist() == [1, 0]


@pytest.mark.parametrize("channels", [1, 3, 16, 31, 256, 1000])
@pytest.mark.parametrize("tokens,k", [(1, 1), (77, 2), (300, 3), (20, 8)])
def test_dispatch_and_combine_match_reference(channels, tokens, k):
    places = random_places(tokens, k)
    x = torch.randn(tokens, channels, dtype=torch.float64, requires_grad=True)
    y = torch.randn(tokens * k, channels, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(tokens, k, dtype=torch.float64, requires_grad=True)
    results = []
    for dispatch, combine in ((moe_dispatch, moe_combine), (moe_dispatch_reference, moe_combine_reference)):
        dispatched, combined = dispatch(x, *places), combine(y, weights, *places)
        results.append([dispatched, *torch.autograd.grad(dispatched, x, y.detach())])
        results[-1] += [combined, *torch.autograd.grad(combined, (y, weights), x.detach())]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_of_dispatch_and_combine(dtype):
    order, place = random_places(64, 4)
    x, y = torch.randn(64, 40).to(dtype), torch.randn(256, 40).to(dtype).requires_grad_()
    weights = torch.rand(64, 4).to(dtype).requires_grad_()
    assert torch.equal(moe_dispatch(x, order, place), x[order // 4])
    output = moe_combine(y, weights, order, place)
    gradients = torch.autograd.grad(output, (y, weights), x)
    wide_y, wide_weights = (t.detach().double().requires_grad_() for t in (y, weights))
    expected = moe_combine_reference(wide_y, wide_weights, order, place)
    expected_gradients = torch.autograd.grad(expected, (wide_y, wide_weights), x.double())
    epsilon = 2 * torch.finfo(dtype).eps  # one rounding, of a sum in float32
    for ours, exact in zip((output, *gradients), (expected, *expected_gradients), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=epsilon, atol=20 * torch.finfo(torch.float32).eps)


def test_combine_takes_float32_weights_of_half_rows():
    weights = torch.rand(8, 2, requires_grad=True)
    output = moe_combine(torch.randn(16, 4).bfloat16(), weights, *random_places(8, 2))
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert weights.grad.dtype == torch.float32


def test_autocast_routes_in_float32():
    logits = torch.randn(9, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = moe_route(logits, 2).weights
    assert torch.equal(weights, moe_route(logits.float(), 2).weights)


def test_combine_undoes_dispatch():
    x = torch.randn(30, 12)
    weights, *_, order, place = moe_route(torch.randn(30, 6), 3)
    torch.testing.assert_close(moe_combine(moe_dispatch(x, order, place), weights, order, place), x)


def test_gradcheck():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: moe_route(x, 3).weights, logits)
    places = random_places(6, 3)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: moe_dispatch(x, *places), x)
    y = torch.randn(18, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, weights: moe_combine(y, weights, *places), (y, weights))


def test_operator_registration():
    ops, logits = torch.ops.detrx, torch.randn(10, 6)
    routing = moe_route(logits, 2)
    x, y, grad = torch.randn(10, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True), torch.randn(10, 8)
    weights, places = routing.weights.clone().requires_grad_(), (routing.order, routing.place)
    opcheck = torch.library.opcheck
    opcheck(ops.moe_route.default, (logits.clone().requires_grad_(), 2))
    opcheck(ops.moe_route_backward.default, (torch.randn(10, 2), logits, routing.experts))
    opcheck(ops.moe_dispatch.default, (x, *places))
    opcheck(ops.moe_dispatch_backward.default, (y.detach(), *places))
    opcheck(ops.moe_combine.default, (y, weights, *places))
    opcheck(ops.moe_combine_backward.default, (grad, y.detach(), routing.weights, *places))


def test_non_contiguous_inputs():
    logits = torch.randn(6, 20).t()
    routing = moe_route(logits, 2)
    for ours, expected in zip(routing, moe_route(logits.contiguous(), 2), strict=True):
        assert torch.equal(ours, expected)
    x, y = torch.randn(5, 20).t(), torch.randn(40, 10)[:, ::2]
    order, place = torch.stack([routing.order, routing.order], 1)[:, 0], routing.place.t().contiguous().t()
    weights = torch.rand(2, 20).t()
    assert not any(t.is_contiguous() for t in (x, y, order, place, weights))
    assert torch.equal(moe_dispatch(x, order, place), x.contiguous()[routing.order // 2])
    expected = moe_combine_reference(y, weights, order, place)
    torch.testing.assert_close(moe_combine(y, weights, order, place), expected)


def test_no_tokens():
    logits = torch.randn(0, 4, requires_grad=True)
    weights, experts, counts, ends, order, place = moe_route(logits, 2)
    assert weights.shape == experts.shape == place.shape == (0, 2) and order.shape == (0,)
    assert counts.tolist() == ends.tolist() == [0] * 4
    x = torch.randn(0, 7, requires_grad=True)
    y = moe_dispatch(x, order, place)
    output = moe_combine(y, weights, order, place)
    assert y.shape == output.shape == (0, 7)
    output.sum().backward()
    assert x.grad.shape == (0, 7) and logits.grad.shape == (0, 4)


def test_no_channels():
    places = random_places(5, 2)
    assert moe_dispatch(torch.randn(5, 0), *places).shape == (10, 0)
    y, weights = torch.randn(10, 0, requires_grad=True), torch.rand(5, 2, requires_grad=True)
    moe_combine(y, weights, *places).sum().backward()
    assert not weights.grad.any()


def test_the_number_of_threads_changes_nothing():
    logits, y = torch.randn(20000, 8), torch.randn(40000, 48)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            routing = moe_route(logits, 2)
            arguments = y, routing.weights, routing.order, routing.place
            rows = torch.ops.detrx.moe_combine_backward(y[:20000], *arguments)
            results.append([*routing, moe_combine(*arguments), *rows])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


X, Y, WEIGHTS, ORDER = torch.randn(5, 4), torch.randn(10, 4), torch.rand(5, 2), torch.arange(10)
PLACE = ORDER.view(5, 2)
MALFORMED = {
    "logits rank": (moe_route, (torch.randn(5), 1), ValueError, r"logits has shape \[5\], expected \(T, E\)"),
    "logits dtype": (moe_route, (torch.ones(5, 4).long(), 1), TypeError, r"logits of shape \[5, 4\] .*int64"),
    "k of zero": (moe_route, (X, 0), ValueError, "k is 0, expected 1 to 8"),
    "k of nine": (moe_route, (torch.randn(5, 20), 9), ValueError, "k is 9, expected 1 to 8"),
    "k above E": (moe_route, (X, 5), ValueError, r"k is 5, .* shape \[5, 4\]"),
    "many experts": (moe_route, (torch.randn(2, 257), 2), ValueError, r"logits of shape \[2, 257\] .* at most 256"),
    "x rank": (moe_dispatch, (torch.randn(5, 2, 4), ORDER, PLACE), ValueError, r"x has shape \[5, 2, 4\]"),
    "x dtype": (moe_dispatch, (torch.ones(5, 4).int(), ORDER, PLACE), TypeError, r"x of shape \[5, 4\] .*int32"),
    "order length": (
        moe_dispatch, (X, ORDER[:9], PLACE), ValueError,
        r"order has shape \[9\], expected \[10\] .* place of shape \[5, 2\]",
    ),
    "order dtype": (moe_dispatch, (X, ORDER.int(), PLACE), TypeError, r"order .* has dtype torch.int32"),
    "order device": (moe_dispatch, (X, ORDER.to("meta"), PLACE), ValueError, r"order .* is on meta, x .* on cpu"),
    "place rank": (moe_dispatch, (X, ORDER, ORDER), ValueError, r"place has shape \[10\]"),
    "place rows": (moe_dispatch, (X, ORDER[:8], PLACE[:4]), ValueError, r"place has shape \[4, 2\].*\[5, 4\]"),
    "place columns": (
        moe_dispatch, (X, torch.arange(45), torch.arange(45).view(5, 9)), ValueError, "k is 9, expected 1 to 8",
    ),
    "place dtype": (moe_dispatch, (X, ORDER, PLACE.int()), TypeError, r"place .* has dtype torch.int32"),
    "y rank": (moe_combine, (torch.randn(10), WEIGHTS, ORDER, PLACE), ValueError, r"y has shape \[10\]"),
    "y rows": (moe_combine, (X, WEIGHTS, ORDER, PLACE), ValueError, r"y has shape \[5, 4\], expected 10 .*\[5, 2\]"),
    "weights rank": (
        moe_combine, (Y, WEIGHTS[0], ORDER, PLACE), ValueError, r"weights has shape \[2\].* y of shape \[10, ",
    ),
    "weights dtype": (moe_combine, (Y, WEIGHTS.long(), ORDER, PLACE), TypeError, r"weights .*int64"),
    "combine order": (
        moe_combine, (Y, WEIGHTS, ORDER[:8], PLACE), ValueError, r"order has shape \[8\], expected \[10\]",
    ),
    "combine place": (moe_combine, (Y, WEIGHTS, ORDER, PLACE.view(10, 1)), ValueError, r"place has shape \[10, 1\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_call(case):
    function, arguments, error, message = MALFORMED[case]
    with pytest.raises(error, match=f"{function.__name__}: {message}"):
        function(*arguments)


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
@pytest.mark.parametrize("case", sorted(set(MALFORMED) - {"order device"}))
def test_malformed_call_of_the_operator(case):
    """The kernels check for themselves: torch.ops can be called without the Python function."""
    function, arguments, error, message = MALFORMED[case]
    with pytest.raises(error, match=f"{function.__name__}: {message.split()[0]}"):
        getattr(torch.ops.detrx, function.__name__)(*arguments)


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
def test_more_assignments_than_the_kernels_count():
    with pytest.raises(ValueError, match=r"logits of shape \[1073741824, 4\] has 2147483648 assignments"):
        moe_route(torch.zeros(1, 4).expand(2**30, 4), 2)
    place = ORDER[:1].expand(2**28, 8)
    for function in (
        lambda: moe_dispatch(X[:1].expand(2**28, 4), ORDER[:1].expand(2**31), place),
        lambda: moe_combine(Y[:1].expand(2**31, 4), WEIGHTS[:1, :1].expand(2**28, 8), ORDER[:1].expand(2**31), place),
    ):
        with pytest.raises(ValueError, match=r"place of shape \[268435456, 8\] has 2147483648 assignments"):
            function()


@pytest.mark.skipif(not COMPILED, reason="the PyTorch code trusts `order` and `place`")
@pytest.mark.parametrize("row,message", [(-1, "is -1"), (10, "is 10"), (3, r"is 3, order\[3\] is 3, expected 4")])
def test_order_and_place_that_are_no_inverse_permutations(row, message):
    place = PLACE.clone()
    place[2, 0] = row
    for function in (
        lambda: moe_dispatch(X, ORDER, place),
        lambda: moe_combine(Y, WEIGHTS, ORDER, place),
        lambda: torch.ops.detrx.moe_dispatch_backward(Y, ORDER, place),
        lambda: torch.ops.detrx.moe_combine_backward(X, Y, WEIGHTS, ORDER, place),
    ):
        with pytest.raises(ValueError, match=rf"place\[2, 0\] {message}"):
            function()


class Shuffle(torch.nn.Module):
    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        weights, _, counts, ends, order, place = moe_route(logits, 2)
        rows = moe_dispatch(x, order, place).tanh()
        return moe_combine(rows, weights, order, place) * counts.sum() * ends[-1]


def test_compile_without_graph_breaks():
    x, logits = torch.randn(12, 6, requires_grad=True), torch.randn(12, 5, requires_grad=True)
    compiled = torch.compile(Shuffle(), fullgraph=True, backend="aot_eager")
    results = []
    for module in (compiled, Shuffle()):
        output = module(x, logits)
        results.append([output, *torch.autograd.grad(output.square().sum(), (x, logits))])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_export():
    tokens = torch.export.Dim("tokens", min=2, max=1000)
    program = torch.export.export(
        Shuffle(), (torch.randn(12, 6), torch.randn(12, 5)), dynamic_shapes=({0: tokens}, {0: tokens})
    )
    x, logits = torch.randn(31, 6), torch.randn(31, 5)
    torch.testing.assert_close(program.module()(x, logits), Shuffle()(x, logits))


@pytest.mark.skipif(not COMPILED, reason="these tests just ran without the extension")
def test_these_tests_pass_without_the_extension():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        command, env={**os.environ, "DETRX_DISABLE_EXT": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
@pytest.mark.parametrize("isa", ["default", "avx2"])
def test_older_instruction_sets(isa):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "combine and reference"]
    result = subprocess.run(
        command, env={**os.environ, "ATEN_CPU_CAPABILITY": isa}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
