"""Boxes, position embeddings and attention blocks against torchvision, torch and hand-made values."""

import math

import pytest
import torch
import torchvision

from detrx.layers import (
    FFN,
    Linear,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    SinePositionEmbedding,
    cxcywh_to_xyxy,
    inverse_sigmoid,
    iou_xyxy,
    sine_embedding,
    xyxy_to_cxcywh,
)


def random_boxes(*shape: int) -> torch.Tensor:
    low = torch.rand(*shape, 2)
    return torch.cat([low, low + 0.05 + torch.rand(*shape, 2)], dim=-1)


def test_box_formats_are_inverse():
    boxes = random_boxes(7)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.2, 0.6, 0.6])


def test_iou_and_giou_against_torchvision():
    a, b = random_boxes(5), random_boxes(6)
    iou, giou = iou_xyxy(a[:, None], b[None])
    torch.testing.assert_close(iou, torchvision.ops.box_iou(a, b), atol=1e-4, rtol=0)
    torch.testing.assert_close(giou, torchvision.ops.generalized_box_iou(a, b), atol=1e-4, rtol=0)


def test_iou_of_degenerate_boxes_is_finite():
    point = torch.full((1, 4), 0.5, requires_grad=True)
    iou, giou = iou_xyxy(point, torch.full((1, 4), 0.5))
    (iou + giou).sum().backward()
    assert torch.isfinite(point.grad).all() and iou.item() == 0.0


def test_inverse_sigmoid():
    x = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor(0.0), eps=1e-3).item() == pytest.approx(math.log(1e-3))
    assert inverse_sigmoid(torch.tensor(1.0), eps=1e-5).item() == pytest.approx(-math.log(1e-5), rel=1e-3)


def test_sine_embedding_layout():
    out = sine_embedding(torch.tensor([0.25, 0.0]), num_feats=4, temperature=100.0)
    angle = 2 * math.pi * 0.25
    first = [math.sin(angle), math.cos(angle), math.sin(angle / 10), math.cos(angle / 10)]
    assert out.tolist() == pytest.approx([*first, 0.0, 1.0, 0.0, 1.0], abs=1e-6)


def test_position_embedding_ignores_padding():
    embed = SinePositionEmbedding(num_feats=8)
    alone = embed(torch.zeros(1, 4, 6, dtype=torch.bool))
    mask = torch.ones(1, 7, 9, dtype=torch.bool)
    mask[:, :4, :6] = False
    torch.testing.assert_close(embed(mask)[..., :4, :6], alone)


def test_attention_against_torch():
    ours, theirs = MultiheadAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x, pos = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    blocked = torch.rand(5, 5) < 0.4
    blocked.fill_diagonal_(False)
    expected, _ = theirs(x + pos, x + pos, x, attn_mask=blocked)
    torch.testing.assert_close(ours.out_proj(ours.attend(*ours.project(x, pos), blocked)), expected)


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="embed_dim 10 is not divisible by num_heads 4"):
        MultiheadAttention(10, 4)
    with pytest.raises(ValueError, match="embed_dim 10 is not divisible by num_heads 4"):
        MultiScaleDeformableAttention(10, 4, 1, 1)


@pytest.mark.parametrize("dims", [2, 4])
def test_deformable_attention_reads_where_it_points(dims: int):
    """With one head, one point, no offset and identity projections, a query reads the value under its reference."""
    attn = MultiScaleDeformableAttention(embed_dim=3, num_heads=1, num_levels=1, num_points=1)
    for linear in (attn.value_proj, attn.output_proj):
        torch.nn.init.eye_(linear.weight)
    torch.nn.init.zeros_(attn.sampling_offsets.bias)
    tokens = torch.randn(1, 4 * 5, 3)
    reference = torch.tensor([(2 + 0.5) / 5, (1 + 0.5) / 4, 0.3, 0.3][:dims]).view(1, 1, 1, dims)
    shapes, start = torch.tensor([[4, 5]]), torch.tensor([0])
    out = attn(torch.randn(1, 1, 3), reference, tokens, shapes, start)
    torch.testing.assert_close(out[0, 0], tokens[0, 1 * 5 + 2])
    # One pixel to the right for points; half the box's width for boxes.
    attn.sampling_offsets.bias.data[0] = 1.0
    shift = 1.0 if dims == 2 else 0.5 * 0.3 * 5
    low = int(2 + shift)
    expected = torch.lerp(tokens[0, 5 + low], tokens[0, 5 + low + 1] if low < 4 else torch.zeros(3), 2 + shift - low)
    torch.testing.assert_close(attn(torch.randn(1, 1, 3), reference, tokens, shapes, start)[0, 0], expected)
    masked = torch.ones(1, 20, dtype=torch.bool)
    assert not attn(torch.randn(1, 1, 3), reference, tokens, shapes, start, masked).any()


@pytest.mark.parametrize("shape", [(2, 70, 256), (0, 256), (1, 256)])
def test_linear_with_and_without_gradient(shape: tuple[int, ...]):
    layer, x = Linear(256, 160), torch.randn(shape)
    with_gradient = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), with_gradient.detach())
        torch.testing.assert_close(layer(x.mT.contiguous().mT), with_gradient.detach())


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_ffn_in_parts_at_inference(rows: int):
    ffn, x = FFN(8, 16), torch.randn(2, rows, 8)
    with torch.no_grad():
        torch.testing.assert_close(ffn(x), torch.nn.Sequential(ffn.linear1, torch.nn.ReLU(), ffn.linear2)(x))
    torch.testing.assert_close(ffn(x[0, :1]), ffn(x)[0, :1])


def test_ffn_is_two_linears_with_relu():
    ffn = FFN(4, 8)
    x = torch.randn(3, 4)
    torch.testing.assert_close(ffn(x), ffn.linear2(ffn.linear1(x).clamp(min=0)))
