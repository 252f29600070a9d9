"""The parts of DETR, Conditional DETR and DAB-DETR, and these detectors as a whole, small and random."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detrx.layers import FFN, ConditionalSelfAttention, MultiheadAttention, SinePositionEmbedding
from detrx.modeling import (
    AnchorPosition,
    AnchorQueries,
    ConditionalCrossAttention,
    ConditionalPosition,
    CrossEntropyLoss,
    DenseCrossAttention,
    LabelEmbedding,
    PositionQueries,
    Predictions,
    Queries,
    SoftmaxMatchingCost,
    Targets,
    Tokenizer,
    TopQueries,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from detrx.modeling.matching import Assignment
from detrx.modeling.tokens import masks_of_levels
from tests.modeling.small import all_detections, make_input, make_model, with_boxes

DIM, HEADS = 16, 4
DETECTORS = ["detr", "conditional_detr", "dab_detr", "dn_detr"]


def make_memory(padded: bool = True):
    features, masks = [torch.randn(2, DIM, 4, 6)], None
    if padded:
        mask = torch.zeros(2, 16, 24, dtype=torch.bool)
        mask[1, 8:], mask[1, :, 16:] = True, True
        masks = masks_of_levels(mask, features)
    return Tokenizer(SinePositionEmbedding(DIM // 2, offset=0.0), DIM, 1, level_embedding=False)(features, masks)


def make_queries(count: int = 5, dims: int = 4) -> Queries:
    reference = torch.rand(2, count, dims) * 0.6 + 0.2
    return Queries(torch.randn(2, count, DIM), torch.randn(2, count, DIM), reference, torch.randn(2, count, DIM))


def test_dense_cross_attention_against_torch():
    ours, theirs = DenseCrossAttention(DIM, HEADS), nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    memory, queries = make_memory(), make_queries()
    inputs = queries.content + queries.pos, memory.tokens + memory.pos, memory.tokens
    for mask_padding in (True, False):
        ours.mask_padding = mask_padding
        expected, _ = theirs(*inputs, key_padding_mask=memory.padding_mask if mask_padding else None)
        torch.testing.assert_close(ours(queries, memory), expected)


@pytest.mark.parametrize("add_pos", [False, True])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_conditional_cross_attention_adds_logits_of_content_and_place(add_pos: bool, mask_padding: bool):
    """Concatenated channels mean added dot products; computed here head by head."""
    attn = ConditionalCrossAttention(DIM, HEADS, add_pos=add_pos, mask_padding=mask_padding)
    memory, queries = make_memory(), make_queries()
    query, key = attn.query_content_proj(queries.content), attn.key_content_proj(memory.tokens)
    query_place, key_place = attn.query_sine_proj(queries.sine), attn.key_pos_proj(memory.pos)
    if add_pos:
        query, key = query + attn.query_pos_proj(queries.pos), key + key_place
    out = []
    for head in torch.arange(DIM).chunk(HEADS):
        logits = query[..., head] @ key[..., head].mT + query_place[..., head] @ key_place[..., head].mT
        if mask_padding:
            logits = logits.masked_fill(memory.padding_mask[:, None], -torch.inf)
        weights = (logits / (2 * len(head)) ** 0.5).softmax(-1)
        out.append(weights @ attn.value_proj(memory.tokens)[..., head])
    torch.testing.assert_close(attn(queries, memory), attn.out_proj(torch.cat(out, dim=-1)))


def test_conditional_self_attention_with_tied_projections_is_the_ordinary_one():
    """With the same projection for content and position, W x + W p = W (x + p)."""
    conditional, ordinary = ConditionalSelfAttention(DIM, HEADS), MultiheadAttention(DIM, HEADS)
    weights = ordinary.in_proj_weight.chunk(3)
    with torch.no_grad():
        for name, weight in zip(("query", "key"), weights, strict=False):
            getattr(conditional, f"{name}_content_proj").weight.copy_(weight)
            getattr(conditional, f"{name}_pos_proj").weight.copy_(weight)
        conditional.value_proj.weight.copy_(weights[2])
        for linear in conditional.children():
            linear.bias.zero_()
    conditional.out_proj = ordinary.out_proj
    x, pos = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM)
    blocked = torch.eye(5, dtype=torch.bool)
    expected = ordinary.attend(*ordinary.project(x, pos), blocked)
    torch.testing.assert_close(conditional.attend(*conditional.project(x, pos), blocked), expected)


def test_encoder_layer_against_torch():
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True)
    ours = TransformerEncoderLayer(MultiheadAttention(DIM, HEADS), FFN(DIM, 32), DIM)
    renamed = {name.replace("linear", "ffn.linear"): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    memory = make_memory()
    out = ours(memory, torch.zeros_like(memory.pos)).tokens
    expected = theirs(memory.tokens, src_key_padding_mask=memory.padding_mask)
    torch.testing.assert_close(out[~memory.padding_mask], expected[~memory.padding_mask])


def test_encoder_scales_positions_by_content():
    """A scale of zero is an encoder without positions; the positions that the decoder gets stay as they are."""
    layer = TransformerEncoderLayer(MultiheadAttention(DIM, HEADS), FFN(DIM, 32), DIM)
    scale = nn.Linear(DIM, DIM)
    encoder, memory = TransformerEncoder(layer, 2, pos_scale=scale), make_memory()
    scaled = encoder(memory)
    assert scaled.pos is memory.pos
    nn.init.zeros_(scale.weight)
    nn.init.zeros_(scale.bias)
    without = encoder(memory).tokens
    assert not torch.allclose(scaled.tokens, without)
    encoder.pos_scale = None
    memory.pos.zero_()
    torch.testing.assert_close(encoder(memory).tokens, without)


def test_ffn_with_prelu():
    ffn = FFN(4, 8, activation=nn.PReLU(init=0.5))
    x = torch.randn(3, 4)
    hidden = ffn.linear1(x)
    torch.testing.assert_close(ffn(x), ffn.linear2(torch.where(hidden > 0, hidden, 0.5 * hidden)))


def test_queries_without_what_the_decoder_needs():
    memory = make_memory()
    bare = Queries(torch.randn(2, 3, DIM), None, None)
    with pytest.raises(ValueError, match="the queries have no reference"):
        ConditionalPosition(DIM)(bare, 0, memory)
    with pytest.raises(ValueError, match="the queries have no pos"):
        DenseCrossAttention(DIM, 2)(bare, memory)
    with pytest.raises(ValueError, match="the queries have no sine"):
        ConditionalCrossAttention(DIM, 2)(bare, memory)


def test_conditional_position_ignores_content_in_the_first_layer_only():
    position, memory, queries = ConditionalPosition(DIM), make_memory(), make_queries(dims=2)
    first, second = (position(queries, index, memory).sine for index in (0, 1))
    other = replace(queries, content=torch.randn_like(queries.content))
    torch.testing.assert_close(position(other, 0, memory).sine, first)
    assert not torch.allclose(position(other, 1, memory).sine, second)


def test_narrow_anchors_weigh_x_more():
    """Half the width doubles the x half of the embedding for cross-attention and leaves the y half."""
    position, memory, queries = AnchorPosition(DIM), make_memory(), make_queries()
    narrow = Queries(queries.content, None, queries.reference * torch.tensor([1, 1, 0.5, 1]))
    wide, narrow = (position(each, 1, memory).sine.chunk(2, dim=-1) for each in (queries, narrow))
    torch.testing.assert_close(narrow[0], wide[0])
    torch.testing.assert_close(narrow[1], 2 * wide[1])


def test_position_queries():
    memory = make_memory()
    plain, predictions = PositionQueries(7, DIM)(memory)
    assert plain.reference is None and not plain.content.any() and plain.pos.shape == (2, 7, DIM) and not predictions
    group, _ = PositionQueries(7, DIM, reference_points=True)(memory)
    assert group.reference.shape == (2, 7, 2) and ((group.reference > 0) & (group.reference < 1)).all()


def test_anchor_queries_pair_every_anchor_with_every_pattern():
    source, memory = AnchorQueries(5, DIM, num_patterns=3), make_memory()
    group, _ = source(memory)
    assert group.pos is None and group.content.shape == (2, 15, DIM) and group.reference.shape == (2, 15, 4)
    pairs = {
        (content[0].item(), box[0].item()) for content, box in zip(group.content[1], group.reference[1], strict=True)
    }
    assert len(pairs) == 15
    torch.testing.assert_close(group.content[0, 5:10], source.patterns.weight[1].expand(5, -1))
    torch.testing.assert_close(group.reference[0, 5:10, :2], source.centres.sigmoid())


def test_frozen_centres_get_no_gradient():
    source = AnchorQueries(5, DIM, freeze_centres=True)
    source(make_memory())[0].reference.sum().backward()
    assert source.centres.grad is None and source.sizes.grad.any()


def test_queries_without_a_label_differ_from_those_with_one_in_the_last_channel():
    embedding = LabelEmbedding(3, DIM)
    group, _ = AnchorQueries(5, DIM, label_embedding=embedding)(make_memory())
    given = embedding(torch.tensor([3]))[0]
    torch.testing.assert_close(group.content[1, 4, :-1], given[:-1])
    assert (group.content[..., -1] == 0).all() and given[-1] == 1
    with pytest.raises(ValueError, match="num_patterns is 2"):
        AnchorQueries(5, DIM, num_patterns=2, label_embedding=embedding)


def make_targets() -> Targets:
    boxes = torch.rand(2, 2, 4) * 0.3 + 0.3
    return Targets(torch.tensor([[1, 2], [0, 0]]), boxes, (2, 0), (0, 1))


def test_cross_entropy_is_the_weighted_mean():
    predictions = Predictions(torch.randn(3, 2, 5, 4), torch.rand(3, 2, 5, 4))
    pairs = Assignment(*torch.tensor([[0, 0, 4, 1], [0, 0, 2, 0], [2, 0, 1, 0]]).unbind(1))
    loss = CrossEntropyLoss(no_object_weight=0.1)(predictions, make_targets(), pairs)
    labels = torch.full((3, 2, 5), 3)
    labels[0, 0, 4], labels[0, 0, 2], labels[2, 0, 1] = 2, 1, 1
    weight = torch.tensor([1, 1, 1, 0.1])
    expected = [
        F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight)
        for logits, label in zip(predictions.logits, labels, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_softmax_cost_is_minus_the_probability():
    predictions, targets = Predictions(torch.randn(1, 2, 5, 4), torch.rand(1, 2, 5, 4)), make_targets()
    cost = SoftmaxMatchingCost(class_weight=3.0, l1_weight=0.0, giou_weight=0.0)(predictions, targets)
    probability = predictions.logits.softmax(-1)
    torch.testing.assert_close(cost[0, 0], -3 * probability[0, 0][:, [1, 2]])


def test_a_query_is_detected_once():
    logits = torch.tensor([[0.0, 2.0, 1.0, 9.0], [3.0, 2.9, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    predictions = Predictions(logits[None, None], torch.full((1, 1, 3, 4), 0.5))
    (found,) = TopQueries(num_detections=10)(predictions, [(10, 10)])
    assert found.pred_classes.tolist() == [2, 0, 1] and found.pred_queries.tolist() == [2, 1, 0]
    expected = logits.softmax(-1)[[2, 1, 0], [2, 0, 1]]
    torch.testing.assert_close(found.scores, expected)
    assert len(TopQueries(num_detections=2)(predictions, [(10, 10)])[0]) == 2


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_a_padded_image_gives_the_detections_of_the_image_alone(name: str):
    model = make_model(f"{name}/{name}_digits.py").eval()
    small, large = make_input(70, 90), make_input(128, 160)
    alone, padded = all_detections(model, [small]), all_detections(model, [small, large])
    torch.testing.assert_close(padded.scores, alone.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    assert torch.equal(padded.pred_classes, alone.pred_classes)
    model.mask_padding = False
    assert not torch.allclose(all_detections(model, [small, large]).scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_parameter_is_trained(name: str):
    model = make_model(f"{name}/{name}_digits.py").train()
    losses = model([with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 0)])
    assert {f"loss_class{suffix}" for suffix in ("", "_0", "_1")} <= set(losses)
    sum(losses.values()).backward()
    untrained = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert untrained == []


def test_supervised_encoder_only_in_training():
    model = make_model("detr/detr_digits.py").train()
    losses = model([with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)])
    (method,) = model.methods
    model.methods = nn.ModuleList()
    plain = model([with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)])
    assert losses.keys() - plain.keys() == {"loss_class_enc", "loss_bbox_enc", "loss_giou_enc"}
    with pytest.raises(ValueError, match="EncoderSupervision is for detectors without EncoderProposals"):
        method.attach(make_model())
