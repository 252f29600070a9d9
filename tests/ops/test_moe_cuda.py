"""The CUDA kernels of the MoE operators, and MoEFFN, against the CPU: on a GPU (`make gpu-check`) and emulated."""

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.layers import MoEFFN
from detrx.ops import expert_linear, moe_combine, moe_dispatch, moe_route
from tests.cuda_on_cpu.emulation import EmulationError
from tests.ops.places import CPU, Place, assert_near

EXPERT_LINEAR = importlib.import_module("detrx.ops.expert_linear")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = [(1, 1, 1), (1, 8, 8), (33, 33, 5), (40, 65, 8), (37, 7, 7), (20, 256, 8), (300, 8, 2)]


def compute_dtype(place: Place, dtype: torch.dtype) -> torch.dtype:
    """The CPU computes in float64 with the same numbers: all that remains is the error of computing in `dtype`."""
    return torch.float64 if place is CPU else dtype


def make_logits(tokens: int, experts: int, kind: str = "ties") -> Tensor:
    """(T, E), numbers of every dtype, so that rounding changes no choice."""
    logits = torch.randn(tokens, experts).mul(16).round().div(16)
    if kind == "equal":
        logits.zero_()
    elif kind == "one expert":
        logits[:, experts // 2] += 100
    elif kind == "not finite":
        for number in (float("nan"), float("inf"), float("-inf")):
            logits[torch.rand(tokens, experts) < 0.3] = number
    return logits


def route(place: Place, dtype: torch.dtype, logits: Tensor, direction: Tensor, **kernels: int | bool) -> list[Tensor]:
    """The routing, and the gradient of its weights."""
    with place.kernels(**kernels):
        to = compute_dtype(place, dtype)
        inputs = place.put(logits.to(dtype), to).requires_grad_()
        routing = moe_route(inputs, direction.shape[1])
        (gradient,) = torch.autograd.grad(routing.weights, inputs, place.put(direction.to(dtype), to))
        return [*(x.detach() for x in routing), gradient]


def assert_routes_match(place: Place, dtype: torch.dtype, logits: Tensor, k: int, **kernels: int | bool) -> None:
    direction = torch.randn(len(logits), k)
    expected = route(CPU, dtype, logits, direction)
    ours = route(place, dtype, logits, direction, **kernels)
    for a, b in zip(ours[1:-1], expected[1:-1], strict=True):  # experts, counts, ends, order, place
        assert torch.equal(a.cpu(), b)
    assert_near([ours[0], ours[-1]], [expected[0], expected[-1]], TOLERANCE[dtype])


def dispatch_and_combine(
    place: Place,
    dtype: torch.dtype,
    inputs: list[Tensor],
    places: tuple[Tensor, Tensor],
    arrange: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    **kernels: int,
) -> list[Tensor]:
    """Both outputs, and the gradients of x (T, C), y (T * k, C) and weights (T, k)."""
    with place.kernels(**kernels):
        x, y, weights = [arrange(place.put(t.to(dtype), compute_dtype(place, dtype))).requires_grad_() for t in inputs]
        order_and_place = [place.put(t) for t in places]
        dispatched, combined = moe_dispatch(x, *order_and_place), moe_combine(y, weights, *order_and_place)
        gradients = torch.autograd.grad(dispatched, x, y.detach())
        gradients += torch.autograd.grad(combined, (y, weights), x.detach())
        return [dispatched.detach(), combined.detach(), *gradients]


def make_rows(tokens: int, k: int, channels: int) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """x, y and weights, and order and place for them."""
    rows = [torch.randn(tokens, channels), torch.randn(tokens * k, channels), torch.rand(tokens, k)]
    return rows, moe_route(torch.randn(tokens, max(8, k)), k)[-2:]


def assert_rows_match(place: Place, dtype: torch.dtype, tokens: int, k: int, channels: int, **kernels: int) -> None:
    inputs, places = make_rows(tokens, k, channels)
    expected = dispatch_and_combine(CPU, dtype, inputs, places)
    ours = dispatch_and_combine(place, dtype, inputs, places, **kernels)
    assert torch.equal(ours[0].cpu().double(), expected[0])  # a copy
    assert_near(ours, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("tokens,experts,k", SIZES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_route_matches_cpu(cuda, tokens, experts, k, dtype):
    for kind in ("ties", "equal", "one expert"):
        assert_routes_match(cuda, dtype, make_logits(tokens, experts, kind), k)


@pytest.mark.parametrize("tokens,experts,k", [(9000, 250, 8), (270000, 3, 1)])
def test_route_of_many_tokens(cuda_once, tokens, experts, k):
    """More tokens than chunks of the smallest size."""
    assert_routes_match(cuda_once, torch.float32, make_logits(tokens, experts), k, check=False)


@pytest.mark.parametrize("experts,k", [(5, 2), (33, 8), (256, 8)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_logits_that_are_not_finite(cuda, experts, k, dtype):
    logits = make_logits(40, experts, "not finite")
    expected = route(CPU, dtype, logits, torch.ones(40, k))
    ours = route(cuda, dtype, logits, torch.ones(40, k))
    for a, b in zip(ours[1:-1], expected[1:-1], strict=True):
        assert torch.equal(a.cpu(), b)
    assert_near(ours[:1], expected[:1], TOLERANCE[dtype])


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8, 16, 33, 256, 257])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_dispatch_and_combine_match_cpu(cuda, channels, dtype):
    for tokens, k in ((1, 1), (21, 2), (20, 8), (50 if cuda.emulated else 5000, 3)):
        assert_rows_match(cuda, dtype, tokens, k, channels)


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rows_that_begin_anywhere(cuda, channels, dtype):
    inputs, places = make_rows(50, 2, channels)

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor], 2)[..., 0]

    expected = dispatch_and_combine(CPU, dtype, inputs, places)
    for arrange in (shifted, strided):
        assert_near(dispatch_and_combine(cuda, dtype, inputs, places, arrange), expected, TOLERANCE[dtype])


def test_empty_inputs(cuda):
    with cuda.kernels():
        logits = cuda.put(torch.randn(0, 4)).requires_grad_()
        weights, _, counts, ends, order, place = moe_route(logits, 2)
        assert counts.tolist() == ends.tolist() == [0] * 4 and order.shape == (0,) and place.shape == (0, 2)
        x = cuda.put(torch.randn(0, 8)).requires_grad_()
        moe_combine(moe_dispatch(x, order, place), weights, order, place).sum().backward()
        assert x.grad.shape == (0, 8) and logits.grad.shape == (0, 4)
    assert_rows_match(cuda, torch.float32, 21, 2, 0)


def test_repeated_calls_agree_bit_for_bit(cuda):
    tokens = 300 if cuda.emulated else 5000
    with cuda.kernels():
        logits, x = (cuda.put(torch.randn(tokens, n)).requires_grad_() for n in (8, 64))
        results = []
        for _ in range(3):
            weights, *_, order, place = moe_route(logits, 2)
            output = moe_combine(moe_dispatch(x, order, place).sin(), weights, order, place)
            results.append([order, output, *torch.autograd.grad(output.square().sum(), (x, logits))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def ends_of(counts: list[int]) -> Tensor:
    return torch.tensor(counts).cumsum(0, dtype=torch.int32)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")
@pytest.mark.parametrize("outputs", [8, 256, 1032])
@pytest.mark.parametrize("relu", [False, True])
def test_grouped_product_with_bias(cuda, monkeypatch, outputs, relu):
    """The product is torch's, also on the CPU; bias and ReLU are kernels."""
    monkeypatch.setattr(EXPERT_LINEAR, "has_kernel", lambda name, device_type: True)
    for counts in ([64, 0, 100, 36], [0, 0, 0, 20], [20, 0, 0, 0], [127, 1, 128, 129], [1] * 40):
        ends, experts = ends_of(counts), len(counts)
        inputs = torch.randn(sum(counts), 16), torch.randn(experts, 16, outputs) / 4, torch.randn(experts, outputs)
        x, weight, bias, direction = [t.bfloat16() for t in (*inputs, torch.randn(sum(counts), outputs))]
        wide = [t.double().requires_grad_() for t in (x, weight, bias)]
        expected = expert_linear(*wide, ends, relu)
        gradients = torch.autograd.grad(expected, wide, direction.double())
        with cuda.kernels():
            x, weight, bias, direction, ends = [cuda.put(t) for t in (x, weight, bias, direction, ends)]
            output = EXPERT_LINEAR._grouped_linear(x, weight, bias, ends, relu)
            rectified = cuda.put(expected.bfloat16()) if relu else None
            ours = EXPERT_LINEAR._grouped_linear_backward(direction, x, weight, ends, rectified)
        assert_near([output, *ours], [expected.detach(), *gradients], 2e-2)


def test_bias_of_products_that_are_not_finite(cuda):
    numbers = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 1.0, -1.0, 0.0, 3e38]).repeat(3, 1)
    with cuda.kernels():
        y, bias = cuda.put(numbers.bfloat16()), cuda.put(torch.zeros(2, 8).bfloat16())
        torch.ops.detrx._add_expert_bias_(y, bias, cuda.put(ends_of([1, 2])), True)
        grad = cuda.put(torch.ones(3, 8).bfloat16())
        masked, _ = torch.ops.detrx._expert_bias_backward(grad, y, cuda.put(ends_of([1, 2])))
    expected = numbers.bfloat16().relu()
    assert torch.equal(y.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(masked.cpu(), torch.ops.aten.threshold_backward(torch.ones(3, 8).bfloat16(), expected, 0))


def test_experts_without_rows_have_no_gradient(cuda):
    """Whatever a product without rows left there."""
    with cuda.kernels():
        grad_weight = cuda.put(torch.full((3, 5, 264), float("nan")).bfloat16())
        grad, ends = cuda.put(torch.ones(4, 264).bfloat16()), cuda.put(ends_of([0, 4, 0]))
        _, sums = torch.ops.detrx._expert_bias_backward(grad, None, ends)
        grad_bias = torch.ops.detrx._sum_expert_bias_(grad_weight, sums, ends)
    assert grad_bias.cpu().unique(dim=1).tolist() == [[0], [4], [0]]
    assert not grad_weight[[0, 2]].any() and grad_weight[1].isnan().all()


def test_layer_matches_cpu(cuda):
    moe = MoEFFN(32, 64, 8)
    x = torch.randn(300, 32)
    expected, load = moe(x)
    with cuda.kernels():
        output, cuda_load = moe.to(cuda.device)(cuda.put(x))
    assert_near([output.detach()], [expected.detach()], 1e-3)
    assert torch.equal(cuda_load.counts.cpu(), load.counts)


# What only the emulation can do: few blocks, so that each works on many items, and assertions, after which a process
# cannot use its GPU any more.


@pytest.mark.parametrize("max_blocks", [1, 2, 3])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_more_items_than_blocks(emulated, max_blocks, dtype):
    for tokens, experts, k in ((1030, 9, 3), (97, 200, 8)):
        assert_routes_match(emulated, dtype, make_logits(tokens, experts), k, max_blocks=max_blocks)
    assert_rows_match(emulated, dtype, 97, 3, 24, max_blocks=max_blocks)


@pytest.mark.parametrize("max_blocks", [1, 2])
def test_more_rows_of_experts_than_blocks(emulated, max_blocks):
    ends = ends_of([100, 0, 300, 0, 60])
    expert = torch.bucketize(torch.arange(460), ends, right=True)
    y, bias = torch.randn(460, 264).bfloat16(), torch.randn(5, 264).bfloat16()
    with emulated.kernels(max_blocks=max_blocks):
        output, rows = emulated.put(y), emulated.put(ends)
        torch.ops.detrx._add_expert_bias_(output, emulated.put(bias), rows, False)
        _, sums = torch.ops.detrx._expert_bias_backward(output, None, rows)
        grad_weight = emulated.put(torch.zeros(5, 8, 264).bfloat16())
        grad_bias = torch.ops.detrx._sum_expert_bias_(grad_weight, sums, rows)
    assert torch.equal(output, y + bias[expert])
    expected = torch.zeros(5, 264).index_add_(0, expert, output.float())
    assert_near([grad_bias], [expected], 1e-2)


@pytest.mark.parametrize("ends,message", [([3, 2, 4], "ends decrease"), ([1, 2, 3], "not those of the rows")])
def test_ends_that_are_not_those_of_the_rows(emulated, ends, message):
    with emulated.kernels(), pytest.raises(EmulationError, match=rf"assertion failed.*{message}"):
        y, bias = (emulated.put(torch.zeros(rows, 8).bfloat16()) for rows in (4, 3))
        torch.ops.detrx._add_expert_bias_(y, bias, emulated.put(torch.tensor(ends, dtype=torch.int32)), True)


ROWS, WEIGHTS, ORDER = torch.randn(4, 8), torch.ones(4, 1), torch.arange(4)
OPERATORS = torch.ops.detrx


@pytest.mark.parametrize("row", [-1, 1, 4, 2**32])
@pytest.mark.parametrize(
    "call",
    [
        lambda put, *places: moe_dispatch(put(ROWS), *places),
        lambda put, *places: moe_combine(put(ROWS), put(WEIGHTS), *places),
        lambda put, *places: OPERATORS.moe_dispatch_backward(put(ROWS), *places),
        lambda put, *places: OPERATORS.moe_combine_backward(put(ROWS), put(ROWS), put(WEIGHTS), *places),
    ],
    ids=["dispatch", "combine", "dispatch_backward", "combine_backward"],
)
def test_order_and_place_that_are_no_inverse_permutations(emulated, call, row):
    place = ORDER.view(4, 1).clone()
    place[3] = row
    with emulated.kernels(), pytest.raises(EmulationError, match=r"assertion failed.*no inverse permutations"):
        call(emulated.put, emulated.put(ORDER), emulated.put(place))


@pytest.mark.parametrize("expert", [-1, 3])
def test_expert_that_does_not_exist(emulated, expert):
    with emulated.kernels(), pytest.raises(EmulationError, match="an expert that does not exist"):
        experts = emulated.put(torch.tensor([[0], [1], [expert], [2]]))
        torch.ops.detrx.moe_route_backward(emulated.put(WEIGHTS), emulated.put(torch.randn(4, 3)), experts)


# What only a GPU can do.


@pytest.mark.gpu
def test_no_synchronisation(gpu):
    logits, x = torch.randn(500, 8, device="cuda", requires_grad=True), torch.randn(500, 64, device="cuda")
    x.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights, *_, order, place = moe_route(logits, 2)
        moe_combine(moe_dispatch(x, order, place), weights, order, place).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[64, 0, 100, 36], [0, 0, 0, 200], [200, 0, 0, 0], [0, 0, 0, 0]])
def test_expert_linear_matches_cpu(gpu, dtype, counts):
    rows = sum(counts)
    inputs = torch.randn(rows, 32), torch.randn(4, 32, 48) / 6, torch.randn(4, 48)
    direction = torch.randn(rows, 48)
    results = []
    for place in (gpu, CPU):
        *leaves, d = [place.put(t.to(dtype), compute_dtype(place, dtype)) for t in (*inputs, direction)]
        leaves = [t.requires_grad_() for t in leaves]
        output = expert_linear(*leaves, place.put(torch.tensor(counts).cumsum(0, dtype=torch.int32)), relu=True)
        results.append([output.detach(), *torch.autograd.grad(output, leaves, d)])
    assert_near(*results, 1e-3 if dtype == torch.float32 else 0.15)


@pytest.mark.gpu
def test_bfloat16_layer_does_not_synchronise(gpu):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no grouped GEMM")
    moe = MoEFFN(64, 128, 8).to("cuda", torch.bfloat16)
    x = torch.randn(500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    moe(x)[0].sum().backward()  # the first call may load modules
    torch.cuda.set_sync_debug_mode("error")
    try:
        output, load = moe(x)
        (output.sum() + load.balancing_loss()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
