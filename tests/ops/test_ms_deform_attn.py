"""detrx.ops.ms_deform_attn: the registered operator, compiled or not, against the grid_sample reference."""

import pytest
import torch

from detrx.ops import has_kernel, ms_deform_attn, ms_deform_attn_reference

SHAPES = [(7, 9), (4, 5), (3, 1), (2, 2), (1, 1)]
ARGUMENTS = ["value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights"]
COMPILED = has_kernel("ms_deform_attn", "cpu")


def make_inputs(
    batch=2, heads=3, channels=8, levels=3, points=2, queries=11, dtype=torch.float64, spread=0.3, requires_grad=True
) -> list[torch.Tensor]:
    """Random arguments; `spread` is how far locations leave [0, 1]."""
    shapes = torch.tensor(SHAPES[:levels])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    value = torch.randn(batch, int(shapes.prod(1).sum()), heads, channels, dtype=dtype)
    locations = torch.rand(batch, queries, heads, levels, points, 2, dtype=dtype) * (1 + 2 * spread) - spread
    weights = torch.rand(batch, queries, heads, levels * points, dtype=dtype).softmax(-1)
    weights = weights.view(batch, queries, heads, levels, points)
    for tensor in (value, locations, weights):
        tensor.requires_grad_(requires_grad)
    return [value, shapes, starts, locations, weights]


def output_and_gradients(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    output = function(*inputs)
    direction = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, (inputs[0], inputs[3], inputs[4]), direction)]


def assert_matches_reference(inputs: list[torch.Tensor], **tolerance) -> None:
    ours = output_and_gradients(ms_deform_attn, inputs)
    expected = output_and_gradients(ms_deform_attn_reference, inputs)
    for name, a, b in zip(("output", "value", "locations", "weights"), ours, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 8, 16, 20, 32, 48, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_reference_for_any_head_width(channels, dtype):
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    assert_matches_reference(make_inputs(channels=channels, dtype=dtype), **tolerance)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("points", [1, 3, 4, 37])  # 5 x 37 is more than one block of points
def test_matches_reference_for_any_levels_and_points(levels, points):
    assert_matches_reference(make_inputs(levels=levels, points=points), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("heads,queries,batch", [(1, 1, 1), (1, 70, 2), (8, 1, 1), (5, 130, 3)])
def test_matches_reference_for_any_sizes(heads, queries, batch):
    assert_matches_reference(make_inputs(batch, heads, queries=queries), rtol=1e-10, atol=1e-10)


def test_gradcheck():
    value, shapes, starts, locations, weights = make_inputs(batch=1, heads=2, channels=3, queries=3)
    # Finite differences must not cross a pixel boundary, where the gradient of a location jumps.
    sizes = shapes.flip(1)[:, None].to(locations)
    pixels = (locations.detach() * sizes - 0.5).mul(4).round().div(4) + 0.1
    locations = ((pixels + 0.5) / sizes).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, loc, w: ms_deform_attn(v, shapes, starts, loc, w), (value, locations, weights)
    )


def test_operator_registration():
    inputs = make_inputs(dtype=torch.float32)
    torch.library.opcheck(torch.ops.detrx.ms_deform_attn.default, inputs)
    grad = torch.randn(2, 11, 24)
    backward_inputs = [grad, *(x.detach() for x in inputs)]
    torch.library.opcheck(torch.ops.detrx.ms_deform_attn_backward.default, backward_inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_float32_inside(dtype):
    inputs = [x.detach().to(dtype) if x.is_floating_point() else x for x in make_inputs(dtype=torch.float32)]
    for index in (0, 3, 4):
        inputs[index].requires_grad_()
    wide = [x.detach().float().requires_grad_() if x.is_floating_point() else x for x in inputs]
    expected = output_and_gradients(ms_deform_attn_reference, wide)
    ours = output_and_gradients(ms_deform_attn, inputs)
    assert all(x.dtype == dtype for x in ours)
    torch.testing.assert_close(ours[0].float(), expected[0], rtol=1e-2, atol=1e-2)


def test_autocast_computes_in_float32():
    inputs = make_inputs(dtype=torch.float32, requires_grad=False)
    expected = ms_deform_attn(inputs[0].bfloat16().float(), *inputs[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ms_deform_attn(inputs[0].bfloat16(), *inputs[1:])
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected)


def test_index_tensors_may_be_int32():
    inputs = make_inputs()
    narrow = [inputs[0], inputs[1].int(), inputs[2].int(), *inputs[3:]]
    assert torch.equal(ms_deform_attn(*inputs), ms_deform_attn(*narrow))


def test_non_contiguous_inputs():
    inputs = make_inputs(requires_grad=False)
    strided = [x if x.dim() == 1 else x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    assert not any(x.is_contiguous() for x in strided if x.dim() > 1)
    for group in (inputs, strided):
        for index in (0, 3, 4):
            group[index].requires_grad_()
    for a, b in zip(
        output_and_gradients(ms_deform_attn, strided), output_and_gradients(ms_deform_attn, inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}, {"heads": 0}, {"channels": 0}, {"points": 0}])
def test_empty_inputs(empty):
    inputs = make_inputs(**empty)
    value, locations, weights = inputs[0], inputs[3], inputs[4]
    output = ms_deform_attn(*inputs)
    assert output.shape == (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    assert not output.any()
    output.sum().backward()
    assert value.grad.shape == value.shape and not value.grad.any()
    assert locations.grad.shape == locations.shape and weights.grad.shape == weights.shape


def test_level_without_tokens():
    inputs = make_inputs(levels=2)
    inputs[1] = torch.tensor([(7, 9), (0, 4)])
    inputs[2] = torch.tensor([0, 63])
    inputs[0] = inputs[0].detach()[:, :63].requires_grad_()
    assert_matches_reference(inputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", [-1.0, 2.0, 1e30, float("inf"), float("nan")])
def test_points_outside_contribute_nothing(where):
    inputs = make_inputs(requires_grad=False)
    inputs[3][:] = where
    for index in (0, 3, 4):
        inputs[index].requires_grad_()
    output, grad_value, grad_locations, grad_weights = output_and_gradients(ms_deform_attn, inputs)
    if COMPILED:  # grid_sample makes a NaN location a valid one
        assert not output.any() and not grad_value.any() and not grad_locations.any() and not grad_weights.any()


def test_pixels_outside_are_not_read():
    """Zero padding: an infinite pixel next to the border does not leak through a weight of zero."""
    value = torch.full((1, 4, 1, 4), float("inf"))
    value[:, 0] = 1.0
    shapes, starts = torch.tensor([[2, 2]]), torch.tensor([0])
    locations = torch.tensor([0.0, 0.0]).view(1, 1, 1, 1, 1, 2)  # pixel (-0.5, -0.5): a quarter of the first pixel
    output = ms_deform_attn(value, shapes, starts, locations, torch.ones(1, 1, 1, 1, 1))
    assert torch.equal(output, torch.full((1, 1, 4), 0.25))


def test_centre_of_a_pixel_is_its_value():
    value = torch.arange(6.0).view(1, 6, 1, 1)
    xy = torch.tensor([[(x + 0.5) / 3, (y + 0.5) / 2] for y in range(2) for x in range(3)]).view(1, 6, 1, 1, 1, 2)
    output = ms_deform_attn(value, torch.tensor([[2, 3]]), torch.tensor([0]), xy, torch.ones(1, 6, 1, 1, 1))
    torch.testing.assert_close(output.flatten(), torch.arange(6.0))


def test_the_number_of_threads_changes_nothing():
    inputs = make_inputs(heads=4, queries=200, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(output_and_gradients(ms_deform_attn, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:] if COMPILED else results[2:3]:
        assert all(torch.equal(a, b) for a, b in zip(results[1], other, strict=True))


def malformed() -> dict[str, tuple[int, torch.Tensor | None, type, str]]:
    """Name -> argument to replace, by what, and the error expected."""
    locations, weights = torch.rand(2, 11, 3, 3, 2, 2), torch.rand(2, 11, 3, 3, 2)
    return {
        "value rank": (0, torch.rand(2, 86, 24), ValueError, r"value has shape \[2, 86, 24\]"),
        "locations rank": (3, torch.rand(2, 11, 3, 3, 2), ValueError, r"sampling_locations has shape"),
        "locations heads": (
            3, torch.rand(2, 11, 4, 3, 2, 2), ValueError,
            r"sampling_locations has shape \[2, 11, 4, 3, 2, 2\], expected \[2, 11, 3, 3, 2, 2\] .*value of shape",
        ),
        "locations last": (3, torch.rand(2, 11, 3, 3, 2, 3), ValueError, r"sampling_locations has shape"),
        "weights points": (
            4, torch.rand(2, 11, 3, 3, 5), ValueError,
            r"attention_weights has shape \[2, 11, 3, 3, 5\], expected \[2, 11, 3, 3, 2\]",
        ),
        "weights batch": (4, weights[:1], ValueError, r"attention_weights has shape \[1, "),
        "shapes levels": (1, torch.tensor(SHAPES[:2]), ValueError, r"spatial_shapes has shape \[2, 2\]"),
        "starts levels": (2, torch.tensor([0, 63]), ValueError, r"level_start_index has shape \[2\]"),
        "level sum": (1, torch.tensor([(7, 9), (4, 5), (3, 2)]), ValueError, r"89 tokens.*S = 86"),
        "negative level": (1, torch.tensor([(7, 9), (4, 5), (-3, -1)]), ValueError, r"level of -3 x -1"),
        "level start": (2, torch.tensor([0, 62, 83]), ValueError, r"level_start_index\[1\] is 62, expected 63"),
        "shapes dtype": (1, torch.tensor(SHAPES[:3]).float(), TypeError, r"spatial_shapes has dtype torch.float32"),
        "locations dtype": (3, locations.double(), TypeError, r"sampling_locations.*float64.*float32"),
        "weights dtype": (4, weights.half(), TypeError, r"attention_weights.*float16.*float32"),
        "weights device": (4, weights.to("meta"), ValueError, r"attention_weights .* is on meta, value .* on cpu"),
    }  # fmt: skip


@pytest.mark.parametrize("case", malformed())
def test_malformed_call(case):
    index, replacement, error, message = malformed()[case]
    inputs = make_inputs(dtype=torch.float32)
    inputs[index] = replacement
    with pytest.raises(error, match=message):
        ms_deform_attn(*inputs)


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
@pytest.mark.parametrize("case", sorted(set(malformed()) - {"weights device"}))
def test_malformed_call_of_the_operator(case):
    """The kernels check for themselves: torch.ops can be called without the Python function."""
    index, replacement, error, _ = malformed()[case]
    inputs = make_inputs(dtype=torch.float32)
    inputs[index] = replacement
    with pytest.raises(error, match=ARGUMENTS[index]):
        torch.ops.detrx.ms_deform_attn(*inputs)


def test_malformed_gradient():
    inputs = [x.detach() for x in make_inputs()]
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.detrx.ms_deform_attn_backward(torch.rand(2, 11, 23, dtype=torch.float64), *inputs)


class Sampler(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return 2 * ms_deform_attn(*inputs)


def test_compile_without_graph_breaks():
    inputs = make_inputs(dtype=torch.float32)
    module = Sampler()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(output_and_gradients(compiled, inputs), output_and_gradients(module, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_export():
    inputs = make_inputs(dtype=torch.float32, requires_grad=False)
    queries = torch.export.Dim("queries", min=2, max=1000)
    dynamic = (None, None, None, {1: queries}, {1: queries})
    program = torch.export.export(Sampler(), tuple(inputs), dynamic_shapes=(dynamic,))
    more = make_inputs(dtype=torch.float32, requires_grad=False, queries=23)
    torch.testing.assert_close(program.module()(*more), Sampler()(*more))
