"""detrx.layers.MultiScaleDeformableAttention: the order of sampling and projection, which depends on the queries."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from detrx.layers import MultiScaleDeformableAttention, recording
from detrx.ops import has_kernel, ms_deform_attn_fused_reference, ms_deform_attn_reference

LEVELS, CHANNELS = [(20, 30), (10, 15)], 24
FEW, MANY = 4, 400


def make_module() -> MultiScaleDeformableAttention:
    module = MultiScaleDeformableAttention(CHANNELS, num_heads=3, num_levels=len(LEVELS), num_points=2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def make_inputs(queries: int, dims: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of two images, the second of which is padded in part; many of the points lie outside of the levels."""
    shapes = torch.tensor(LEVELS)
    sizes = shapes.prod(1)
    query, tokens = torch.randn(2, queries, CHANNELS).to(dtype), torch.randn(2, int(sizes.sum()), CHANNELS).to(dtype)
    reference = 2 * torch.rand(2, queries, len(LEVELS), dims).to(dtype) - 0.5
    padding_mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    padding_mask[1] = torch.rand(tokens.shape[1]) < 0.4
    return [query, reference, tokens, shapes, torch.tensor([0, int(sizes[0])]), padding_mask]


def project_then_sample(
    module: MultiScaleDeformableAttention,
    query: Tensor,
    reference: Tensor,
    tokens: Tensor,
    shapes: Tensor,
    starts: Tensor,
    padding_mask: Tensor | None,
) -> Tensor:
    value = module.value_proj(tokens)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[..., None], 0.0)
    offsets = module.sampling_offsets(query).unflatten(-1, (3, len(LEVELS), 2, 2))
    logits = module.attention_weights(query).unflatten(-1, (3, len(LEVELS), 2))
    value = value.unflatten(-1, (3, -1))
    return module.output_proj(ms_deform_attn_fused_reference(value, shapes, starts, reference, offsets, logits))


@pytest.mark.parametrize("queries", [0, FEW, MANY])
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_reference(queries, dims, masked):
    module = make_module().double()
    query, reference, tokens, shapes, starts, padding_mask = make_inputs(queries, dims, torch.float64)
    if not masked:
        padding_mask = None
    differentiable = [x.requires_grad_() for x in (query, reference, tokens)]
    weights, results = torch.randn_like(query), []
    for function in (module, lambda *inputs: project_then_sample(module, *inputs)):
        output = function(*differentiable, shapes, starts, padding_mask)
        gradients = torch.autograd.grad((output * weights).sum(), [*differentiable, *module.parameters()])
        results.append([output, *gradients])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not has_kernel("ms_deform_attn_fused", "cpu"), reason="no compiled kernel")
def test_few_queries_do_not_pay_for_the_projection_of_all_tokens():
    module = make_module()
    projection = 2 * 2 * sum(h * w for h, w in LEVELS) * CHANNELS**2
    for queries, projects in ((FEW, False), (MANY, True)):
        with FlopCounterMode(display=False) as counter:
            module(*make_inputs(queries))
        assert (counter.get_total_flops() > projection) == projects


def test_autocast_with_few_queries():
    module, inputs = make_module(), make_inputs(FEW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(*inputs)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), module(*inputs), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_number_of_queries(strict):
    module = make_module().eval()
    queries = torch.export.Dim("queries", min=2, max=1000)
    dynamic = ({1: queries}, {1: queries}, None, None, None, None)
    with torch.no_grad():
        program = torch.export.export(module, tuple(make_inputs(FEW)), dynamic_shapes=dynamic, strict=strict)
        for count in (2, MANY):
            inputs = make_inputs(count)
            torch.testing.assert_close(program.module()(*inputs), module(*inputs))


def test_compiles_without_graph_breaks():
    module, inputs = make_module(), make_inputs(FEW)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("queries", [FEW, MANY])
@pytest.mark.parametrize("dims", [2, 4])
def test_recorded_points_are_those_that_are_sampled(queries, dims):
    """Whatever the order of sampling and projection; nothing is recorded afterwards."""
    module = make_module()
    query, reference, tokens, shapes, starts, _ = make_inputs(queries, dims)
    with recording([module]) as (calls,):
        found = module(query, reference, tokens, shapes, starts)
    module(query, reference, tokens, shapes, starts)
    ((points, weights),) = (call.points() for call in calls)
    value = module.value_proj(tokens).unflatten(-1, (3, -1))
    expected = module.output_proj(ms_deform_attn_reference(value, shapes, starts, points, weights))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, queries, 3))
