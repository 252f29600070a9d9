"""Query groups through the decoder: independence, visibility, masks, routes, references."""

import copy

import pytest
import torch

from detrx.layers import FFN, MultiheadAttention, SinePositionEmbedding
from detrx.modeling import (
    Decoder,
    DecoderLayer,
    DeformableCrossAttention,
    PredictionHeads,
    QueryGroup,
    QueryTokens,
    Route,
    Tokenizer,
)
from detrx.modeling.queries import portions, put, take
from detrx.modeling.tokens import masks_of_levels

DIM, LEVELS, LAYERS = 16, 2, 2


def make_memory(padded: bool = False):
    features = [torch.randn(2, DIM, 6, 8), torch.randn(2, DIM, 3, 4)]
    masks = None
    if padded:
        mask = torch.zeros(2, 24, 32, dtype=torch.bool)
        mask[1, 16:], mask[1, :, 24:] = True, True
        masks = masks_of_levels(mask, features)
    return Tokenizer(SinePositionEmbedding(DIM // 2), DIM, LEVELS)(features, masks)


def make_decoder(**options) -> Decoder:
    layer = DecoderLayer(MultiheadAttention(DIM, 4), DeformableCrossAttention(DIM, 4, LEVELS, 2), FFN(DIM, 32), DIM)
    decoder = Decoder(layer, LAYERS, PredictionHeads(DIM, 3, LAYERS), **options)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder.eval()


def make_group(name: str, count: int, dims: int = 4, **options) -> QueryGroup:
    content, pos = torch.randn(2, count, DIM), torch.randn(2, count, DIM)
    return QueryGroup(name, content, pos, torch.rand(2, count, dims) * 0.6 + 0.2, **options)


def test_groups_that_do_not_see_each_other_are_independent():
    decoder, memory = make_decoder(), make_memory(padded=True)
    main, other = make_group("main", 5), make_group("other", 7)
    together = decoder([main, other], memory)
    for group in (main, other):
        alone = decoder([group], memory)[group.name]
        torch.testing.assert_close(together[group.name].logits, alone.logits)
        torch.testing.assert_close(together[group.name].boxes, alone.boxes)


def test_visibility_is_one_way():
    """`denoising` sees `main`: main changes it, and it never changes main."""
    decoder, memory = make_decoder(), make_memory()
    main, denoising = make_group("main", 5), make_group("denoising", 4, sees=("main",))
    seen = decoder([main, denoising], memory)
    changed = decoder([make_group("main", 5), denoising], memory)
    assert not torch.allclose(seen["denoising"].logits, changed["denoising"].logits)
    torch.testing.assert_close(seen["main"].logits, decoder([main], memory)["main"].logits)


def test_visibility_equals_one_masked_attention():
    """Groups with `sees` and `blocked` equal one group of all queries with the corresponding mask."""
    decoder, memory = make_decoder(), make_memory()
    blocked = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)
    main, extra = make_group("main", 4), make_group("extra", 3, blocked=blocked, sees=("main",))
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[:4, 4:] = True
    mask[4:, 4:] = blocked
    parts = [torch.cat([getattr(main, a), getattr(extra, a)], dim=1) for a in ("content", "pos", "reference")]
    whole = decoder([QueryGroup("all", *parts, blocked=mask)], memory)["all"]
    split = decoder([main, extra], memory)
    torch.testing.assert_close(split["main"].logits, whole.logits[:, :, :4])
    torch.testing.assert_close(split["extra"].boxes, whole.boxes[:, :, 4:])


@pytest.mark.parametrize("component", ["self_attn", "norm1", "cross_attn", "ffn"])
def test_route_with_own_component(component: str):
    """A group with a component of its own equals a decoder that has this component; the other groups do not notice."""
    decoder, memory = make_decoder(), make_memory()
    own = torch.nn.ModuleList(copy.deepcopy(getattr(layer, component)) for layer in decoder.layers)
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    first, routed = make_group("first", 3), make_group("routed", 4, route=Route(**{component: own}))
    last = make_group("last", 2)
    out = decoder([first, routed, last], memory)
    for group in (first, last):
        torch.testing.assert_close(out[group.name].logits, decoder([group], memory)[group.name].logits)
    swapped = copy.deepcopy(decoder)
    for layer, module in zip(swapped.layers, own, strict=True):
        setattr(layer, component, module)
    plain = QueryGroup("routed", routed.content, routed.pos, routed.reference)
    torch.testing.assert_close(out["routed"].logits, swapped([plain], memory)["routed"].logits)


def test_tokens_are_seen_like_queries():
    """In one layer, a group with tokens equals a longer group that begins with them; nobody else sees them."""
    decoder, memory = make_decoder(), make_memory()
    decoder.layers = decoder.layers[:1]
    tokens = torch.nn.ModuleList([QueryTokens(3, DIM)])
    blocked = torch.rand(4, 4) < 0.5
    blocked.fill_diagonal_(False)
    main, instructed = make_group("main", 5), make_group("instructed", 4, route=Route(tokens=tokens), blocked=blocked)
    out = decoder([main, instructed], memory)
    torch.testing.assert_close(out["main"].logits, decoder([main], memory)["main"].logits)
    parts = [
        torch.cat([token.expand(2, -1, -1), getattr(instructed, name)], dim=1)
        for token, name in zip((*tokens[0](), torch.rand(3, 4)), ("content", "pos", "reference"), strict=True)
    ]
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[3:, 3:] = blocked
    longer = decoder([QueryGroup("longer", *parts, blocked=mask)], memory)["longer"]
    torch.testing.assert_close(out["instructed"].logits, longer.logits[:, :, 3:])
    torch.testing.assert_close(out["instructed"].boxes, longer.boxes[:, :, 3:])


def test_own_self_attention_projects_only_what_its_groups_see():
    decoder, memory = make_decoder(), make_memory()
    own = torch.nn.ModuleList(copy.deepcopy(layer.self_attn) for layer in decoder.layers)
    seen = []
    own[0].project = lambda x, pos: seen.append(x.shape[1]) or MultiheadAttention.project(own[0], x, pos)
    decoder([make_group("main", 5), make_group("routed", 4, route=Route(self_attn=own))], memory)
    assert seen == [4]


def test_shared_components_run_once_for_all_groups():
    decoder, memory = make_decoder(), make_memory()
    calls = []
    decoder.layers[0].cross_attn.register_forward_hook(lambda *args: calls.append(args))
    decoder.layers[0].ffn.register_forward_hook(lambda *args: calls.append(args))
    decoder([make_group("main", 3), make_group("other", 4)], memory)
    assert len(calls) == 2


@pytest.mark.parametrize("owners", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 2], [1, None, None, 0]])
def test_portions_are_what_take_gives_with_the_same_gradient(owners):
    sizes, start, slices = [2, 3, 1, 4], 0, []
    for size in sizes:
        slices.append(slice(start, start + size))
        start += size
    modules = [torch.nn.Linear(DIM, DIM) for _ in {*owners} - {None}]
    served = [(module, [s for s, o in zip(slices, owners, strict=True) if o == i]) for i, module in enumerate(modules)]
    x = torch.randn(2, start, DIM, requires_grad=True)
    ours = put([(of, module(part)) for module, of, part in portions(x, served)])
    expected = put([(of, module(take(x, of))) for module, of in served])
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, x, weights)[0] for out in (ours, expected)]
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*gradients)


def test_points_become_boxes_under_refinement():
    decoder, memory = make_decoder(), make_memory()
    out = decoder([make_group("main", 5, dims=2)], memory)["main"]
    assert out.boxes.shape == (LAYERS, 2, 5, 4) and out.logits.shape == (LAYERS, 2, 5, 3)


def test_box_gradients_reach_one_layer_back_only_when_looking_forward_twice():
    for look_forward_twice in (False, True):
        decoder, memory = make_decoder(look_forward_twice=look_forward_twice), make_memory()
        decoder([make_group("main", 5)], memory)["main"].boxes[-1].sum().backward()
        assert decoder.heads.box_heads[0].layers[-1].weight.grad.any() == look_forward_twice


def test_looking_forward_twice_does_not_change_values():
    decoder, memory, group = make_decoder(), make_memory(), make_group("main", 5)
    once = decoder([group], memory)["main"]
    decoder.look_forward_twice = True
    torch.testing.assert_close(decoder([group], memory)["main"].boxes, once.boxes)


def test_errors_name_the_groups():
    decoder, memory = make_decoder(), make_memory()
    with pytest.raises(ValueError, match="distinct names"):
        decoder([make_group("main", 2), make_group("main", 2)], memory)
    with pytest.raises(ValueError, match=r"'denoising' sees \['mian'\]"):
        decoder([make_group("main", 2), make_group("denoising", 2, sees=("mian",))], memory)
    with pytest.raises(ValueError, match=r"references of one kind.*'main': 4, 'points': 2"):
        decoder([make_group("main", 2), make_group("points", 2, dims=2)], memory)
    with pytest.raises(ValueError, match="look_forward_twice needs refine_boxes"):
        make_decoder(look_forward_twice=True, refine_boxes=False)


@pytest.mark.parametrize("eps", [1e-2, 1e-5])
def test_references_at_the_border_are_clamped(eps: float):
    """sigmoid(log(eps / 1)) = eps / (1 + eps)."""
    shifted = make_decoder(inverse_sigmoid_eps=eps).shift(torch.zeros(4), torch.zeros(4))
    torch.testing.assert_close(shifted, torch.full((4,), eps / (1 + eps)))
