"""detrx.ops.ms_deform_attn_fused: against its reference, and as an operator of PyTorch."""

import functools

import pytest
import torch

from detrx.layers import MultiScaleDeformableAttention
from detrx.ops import has_kernel, ms_deform_attn, ms_deform_attn_fused, ms_deform_attn_fused_reference

SHAPES = [(7, 9), (4, 5), (3, 1), (2, 2), (1, 1)]
ARGUMENTS = ["value", "spatial_shapes", "level_start_index", "reference", "offsets", "logits"]
RESULTS = ["output", "value", "reference", "offsets", "logits"]
COMPILED = has_kernel("ms_deform_attn_fused", "cpu")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_inputs(
    dims=2, batch=2, heads=3, channels=8, levels=3, points=2, queries=11, dtype=torch.float64, requires_grad=True
) -> list[torch.Tensor]:
    """Random arguments; a third of the points lies outside of the maps."""
    shapes = torch.tensor(SHAPES[:levels])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    value = torch.randn(batch, int(shapes.prod(1).sum()), heads, channels, dtype=dtype)
    reference = torch.rand(batch, queries, levels, dims, dtype=dtype)
    offsets = (1 if dims == 2 else points) * torch.randn(batch, queries, heads, levels, points, 2, dtype=dtype)
    logits = 2 * torch.randn(batch, queries, heads, levels, points, dtype=dtype)
    for tensor in (value, reference, offsets, logits):
        tensor.requires_grad_(requires_grad)
    return [value, shapes, starts, reference, offsets, logits]


def output_and_gradients(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    output = function(*inputs)
    direction = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, [inputs[i] for i in (0, 3, 4, 5)], direction)]


def unfused(value, spatial_shapes, level_start_index, reference, offsets, logits):
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    reference = reference[:, :, None, :, None]
    if reference.shape[-1] == 2:
        locations = reference + offsets / spatial_shapes.flip(-1).to(offsets)[:, None]
    else:
        locations = reference[..., :2] + offsets / offsets.shape[4] * reference[..., 2:] * 0.5
    return ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor], **tolerance) -> None:
    for name, a, b in zip(RESULTS, ours, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_matches_reference(inputs: list[torch.Tensor], **tolerance) -> None:
    ours = output_and_gradients(ms_deform_attn_fused, inputs)
    assert_same(ours, output_and_gradients(ms_deform_attn_fused_reference, inputs), **tolerance)


@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("channels", [1, 5, 16, 32, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_reference_for_any_head_width(dims, channels, dtype):
    tolerance = EXACT if dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-4}
    assert_matches_reference(make_inputs(dims, channels=channels, dtype=dtype), **tolerance)


@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("levels,points", [(1, 1), (1, 4), (2, 3), (4, 4), (5, 8), (5, 37), (3, 1)])
def test_matches_reference_for_any_levels_and_points(dims, levels, points):
    assert_matches_reference(make_inputs(dims, levels=levels, points=points), **EXACT)


@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("heads,queries,batch", [(1, 1, 1), (1, 70, 2), (8, 1, 1), (5, 130, 3), (2, 86, 2)])
def test_matches_reference_for_any_sizes(dims, heads, queries, batch):
    # 86 queries are as many as tokens, which are processed in another order.
    assert_matches_reference(make_inputs(dims, batch, heads, queries=queries), **EXACT)


@pytest.mark.parametrize("dims", [2, 4])
def test_equals_the_unfused_operator_to_rounding(dims):
    inputs = make_inputs(dims, heads=8, channels=32, levels=4, points=4, queries=50, dtype=torch.float32)
    ours = output_and_gradients(ms_deform_attn_fused, inputs)
    for name, a, b in zip(RESULTS, ours, output_and_gradients(unfused, inputs), strict=True):
        assert (a - b).abs().max() < 3e-6 * b.abs().max(), name


@pytest.mark.parametrize("dims", [2, 4])
def test_gradcheck(dims):
    value, shapes, starts, reference, offsets, logits = make_inputs(dims, batch=1, heads=2, channels=3, queries=3)
    # Finite differences must not cross a pixel boundary, where the gradient of a location jumps.
    sizes = shapes.flip(1)[:, None].to(offsets)
    wide = reference.detach()[:, :, None, :, None]
    step = 1 / sizes if dims == 2 else wide[..., 2:] * 0.5 / offsets.shape[4]
    locations = wide[..., :2] + offsets.detach() * step
    pixels = (locations * sizes - 0.5).mul(4).round().div(4) + 0.1
    offsets = (((pixels + 0.5) / sizes - wide[..., :2]) / step).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, r, o, w: ms_deform_attn_fused(v, shapes, starts, r, o, w), (value, reference, offsets, logits)
    )


@pytest.mark.parametrize("dims", [2, 4])
def test_operator_registration(dims):
    inputs = make_inputs(dims, dtype=torch.float32)
    torch.library.opcheck(torch.ops.detrx.ms_deform_attn_fused.default, inputs)
    backward_inputs = [torch.randn(2, 11, 24), *(x.detach() for x in inputs)]
    for needed in (True, False):
        torch.library.opcheck(torch.ops.detrx.ms_deform_attn_fused_backward.default, [*backward_inputs, needed])


@pytest.mark.parametrize("dims", [2, 4])
def test_reference_gradient_only_where_it_is_needed(dims):
    inputs = make_inputs(dims)
    expected = output_and_gradients(ms_deform_attn_fused, inputs)
    inputs[3] = inputs[3].detach()
    output = ms_deform_attn_fused(*inputs)
    direction = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    gradients = torch.autograd.grad(output, [inputs[i] for i in (0, 4, 5)], direction)
    for a, b in zip(gradients, [expected[1], *expected[3:]], strict=True):
        assert torch.equal(a, b)
    raw = torch.ops.detrx.ms_deform_attn_fused_backward(direction, *(x.detach() for x in inputs), False)
    assert raw[3].numel() == 0


@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("channels", [5, 8, 32])
@pytest.mark.parametrize("wide_reference", [False, True])
def test_reduced_precision_is_float32_inside(dtype, tolerance, dims, channels, wide_reference):
    inputs = make_inputs(dims, channels=channels, levels=4, points=4, dtype=torch.float32, requires_grad=False)
    narrow = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    if wide_reference:
        narrow[3] = inputs[3]
    wide = [x.float() if x.is_floating_point() else x for x in narrow]
    for group in (narrow, wide):
        for index in (0, 3, 4, 5):
            group[index] = group[index].detach().requires_grad_()
    ours = output_and_gradients(ms_deform_attn_fused, narrow)
    assert [x.dtype for x in ours] == [dtype, dtype, narrow[3].dtype, dtype, dtype]
    output = ms_deform_attn_fused(*wide)
    # What is left is the rounding of the results, and of the direction of the gradient.
    direction = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output).float()
    expected = [output, *torch.autograd.grad(output, [wide[i] for i in (0, 3, 4, 5)], direction)]
    for name, a, b in zip(RESULTS, ours, expected, strict=True):
        assert (a.float() - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), name


def test_autocast_casts_all_but_the_reference():
    inputs = make_inputs(dtype=torch.float32, requires_grad=False)
    value, shapes, starts, reference, offsets, logits = inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ms_deform_attn_fused(*inputs)
    expected = ms_deform_attn_fused(value.bfloat16(), shapes, starts, reference, offsets.bfloat16(), logits.bfloat16())
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)


def test_logits_may_be_flat():
    inputs = make_inputs(requires_grad=False)
    flat = [*inputs[:5], inputs[5].flatten(3)]
    assert torch.equal(ms_deform_attn_fused(*inputs), ms_deform_attn_fused(*flat))


def test_index_tensors_may_be_int32():
    inputs = make_inputs()
    narrow = [inputs[0], inputs[1].int(), inputs[2].int(), *inputs[3:]]
    assert torch.equal(ms_deform_attn_fused(*inputs), ms_deform_attn_fused(*narrow))


@pytest.mark.parametrize("dims", [2, 4])
def test_non_contiguous_inputs(dims):
    inputs = make_inputs(dims, requires_grad=False)
    strided = [x if x.dim() == 1 else x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    assert not any(x.is_contiguous() for x in strided if x.dim() > 1)
    for group in (inputs, strided):
        for index in (0, 3, 4, 5):
            group[index].requires_grad_()
    ours = output_and_gradients(ms_deform_attn_fused, strided)
    assert_same(ours, output_and_gradients(ms_deform_attn_fused, inputs))


@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}, {"heads": 0}, {"channels": 0}, {"points": 0}])
def test_empty_inputs(dims, empty):
    inputs = make_inputs(dims, **empty)
    output = ms_deform_attn_fused(*inputs)
    assert output.shape == (inputs[0].shape[0], inputs[4].shape[1], inputs[0].shape[2] * inputs[0].shape[3])
    assert not output.any()
    output.sum().backward()
    for index in (0, 3, 4, 5):
        assert inputs[index].grad.shape == inputs[index].shape and not inputs[index].grad.any()


def test_level_without_tokens():
    inputs = make_inputs(levels=2)
    inputs[1] = torch.tensor([(7, 9), (0, 4)])
    inputs[2] = torch.tensor([0, 63])
    inputs[0] = inputs[0].detach()[:, :63].requires_grad_()
    assert_matches_reference(inputs, **EXACT)


@pytest.mark.parametrize("where", [-100.0, 1e30, float("inf"), float("nan")])
def test_points_outside_contribute_nothing(where):
    inputs = make_inputs(requires_grad=False)
    inputs[4][:] = where
    for index in (0, 3, 4, 5):
        inputs[index].requires_grad_()
    results = output_and_gradients(ms_deform_attn_fused, inputs)
    if COMPILED:  # grid_sample makes a NaN location a valid one
        assert not any(x.any() for x in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_large_logits_do_not_overflow(dtype):
    inputs = make_inputs(dtype=dtype, requires_grad=False)
    inputs[5].mul_(4000)
    ours, expected = ms_deform_attn_fused(*inputs), ms_deform_attn_fused_reference(*inputs)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_bad_logits_show_in_the_output(bad):
    inputs = make_inputs(dtype=torch.float32, requires_grad=False)
    inputs[5][0, 0, 0] = bad
    output = ms_deform_attn_fused(*inputs)
    assert output[0, 0, :8].isnan().all() and output[0, 0, 8:].isfinite().all()


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(dims, dtype):
    inputs = make_inputs(dims, batch=1, heads=4, queries=200, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):  # with 3 and 8 threads, they share the levels of a head
            torch.set_num_threads(threads)
            results.append(output_and_gradients(ms_deform_attn_fused, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def malformed() -> dict[str, tuple[int, torch.Tensor, type, str]]:
    """Name -> argument to replace, by what, and the error expected."""
    offsets, logits = torch.rand(2, 11, 3, 3, 2, 2), torch.rand(2, 11, 3, 3, 2)
    return {
        "value rank": (0, torch.rand(2, 86, 24), ValueError, r"value has shape \[2, 86, 24\]"),
        "offsets rank": (4, torch.rand(2, 11, 3, 3, 2), ValueError, r"offsets has shape"),
        "offsets heads": (
            4, torch.rand(2, 11, 4, 3, 2, 2), ValueError,
            r"offsets has shape \[2, 11, 4, 3, 2, 2\], expected \[2, 11, 3, 3, 2, 2\] .*value of shape",
        ),
        "logits points": (
            5, torch.rand(2, 11, 3, 3, 5), ValueError,
            r"logits has shape \[2, 11, 3, 3, 5\], expected \[2, 11, 3, 3, 2\] .*offsets of shape",
        ),
        "logits flat": (5, torch.rand(2, 11, 3, 7), ValueError, r"logits has shape \[2, 11, 3, 7\]"),
        "reference rank": (3, torch.rand(2, 11, 2), ValueError, r"reference has shape \[2, 11, 2\].*value of shape"),
        "reference dims": (3, torch.rand(2, 11, 3, 3), ValueError, r"reference has shape \[2, 11, 3, 3\]"),
        "reference levels": (
            3, torch.rand(2, 11, 1, 2), ValueError,
            r"reference has shape \[2, 11, 1, 2\], expected \[2, 11, 3, 2\] .*offsets of shape",
        ),
        "reference dtype": (3, torch.rand(2, 11, 3, 2).double(), TypeError, r"reference .*float64.*float32"),
        "reference device": (3, torch.rand(2, 11, 3, 2).to("meta"), ValueError, r"reference .* is on meta, value"),
        "offsets dtype": (4, offsets.double(), TypeError, r"offsets.*float64.*float32"),
        "logits dtype": (5, logits.half(), TypeError, r"logits.*float16.*float32"),
        "level sum": (1, torch.tensor([(7, 9), (4, 5), (3, 2)]), ValueError, r"89 tokens.*S = 86"),
        "level start": (2, torch.tensor([0, 62, 83]), ValueError, r"level_start_index\[1\] is 62, expected 63"),
    }  # fmt: skip


@pytest.mark.parametrize("case", malformed())
def test_malformed_call(case):
    index, replacement, error, message = malformed()[case]
    inputs = make_inputs(dtype=torch.float32)
    inputs[index] = replacement
    with pytest.raises(error, match=message):
        ms_deform_attn_fused(*inputs)


@pytest.mark.skipif(not COMPILED, reason="no compiled kernel")
@pytest.mark.parametrize("case", sorted(set(malformed()) - {"reference device"}))
def test_malformed_call_of_the_operator(case):
    """The kernels check for themselves: torch.ops can be called without the Python function."""
    index, replacement, error, _ = malformed()[case]
    inputs = make_inputs(dtype=torch.float32)
    inputs[index] = replacement
    with pytest.raises(error, match=ARGUMENTS[index]):
        torch.ops.detrx.ms_deform_attn_fused(*inputs)


@functools.cache
def module() -> MultiScaleDeformableAttention:
    attention = MultiScaleDeformableAttention(embed_dim=24, num_heads=3, num_levels=3, num_points=2)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.2)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.2)
    return attention


def module_inputs(dims: int, queries: int = 11) -> tuple[torch.Tensor, ...]:
    value, shapes, starts, reference, *_ = make_inputs(dims, queries=queries, dtype=torch.float32, requires_grad=False)
    return torch.randn(2, queries, 24), reference, value.flatten(2), shapes, starts


@pytest.mark.parametrize("dims", [2, 4])
def test_module_compiles_without_graph_breaks(dims):
    inputs = module_inputs(dims)
    compiled = torch.compile(module(), fullgraph=True, backend="aot_eager")
    results = []
    for function in (module(), compiled):
        query = inputs[0].clone().requires_grad_()
        output = function(query, *inputs[1:])
        results.append((output, *torch.autograd.grad(output.square().sum(), [query, *module().parameters()])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_module_exports_with_any_number_of_queries():
    queries = torch.export.Dim("queries", min=2, max=1000)
    dynamic = ({1: queries}, {1: queries}, None, None, None)
    with torch.no_grad():
        program = torch.export.export(module(), module_inputs(4), dynamic_shapes=dynamic)
        more = module_inputs(4, queries=23)
        torch.testing.assert_close(program.module()(*more), module()(*more))
    assert "ms_deform_attn_fused" in str(program.graph)


def test_module_under_autocast():
    inputs = module_inputs(2)
    expected = module()(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module()(*inputs)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)
