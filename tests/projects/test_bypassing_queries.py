"""Queries that bypass a decoder layer keep content, reference and prediction, in every detector and beside methods."""

import copy

import pytest
import torch
from torch import Tensor, nn

from detrx.modeling import Decoder, Denoising, DetectionTransformer, Method, Queries
from detrx.projects.h_detr import HybridBranch
from detrx.projects.mr_detr import MrDETR
from detrx.projects.qr_detr import QueryRouting, force_routers
from tests.projects.contract import DETECTORS, detector, make_batch, switch_on, training_step

QUERIES, LAYERS = 10, 3


def watched(decoder: Decoder) -> list[Queries]:
    """A list to which each layer appends the queries that enter it."""
    entering: list[Queries] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    return entering


def routed(name: str, *others: Method, **options) -> DetectionTransformer:
    torch.manual_seed(0)
    return switch_on(detector(name), *copy.deepcopy(others), QueryRouting(**options))


@torch.no_grad()
@pytest.mark.parametrize("name", DETECTORS)
def test_with_shut_routers_nothing_changes(name: str):
    """EEQR_F: content, reference and prediction of all queries are those with which they enter the decoder."""
    assert_nothing_changes(routed(name, scheme="full"))


@torch.no_grad()
@pytest.mark.parametrize("methods", [[HybridBranch(num_queries=12, copies=3)], [MrDETR()]])
def test_with_shut_routers_nothing_changes_in_the_groups_of_other_methods(methods: list[Method]):
    assert_nothing_changes(routed("dino", *methods, scheme="full"))


def assert_nothing_changes(model: DetectionTransformer) -> None:
    force_routers(model, 0.0)
    entering = watched(model.decoder)
    found = training_step(model, make_batch())[0]
    predictions = {name: each for name, each in found.items() if name != "exit" and len(each.logits) == LAYERS}
    first, *others = entering
    for queries in others:
        assert torch.equal(queries.content, first.content)
        if first.reference is not None:
            assert torch.equal(queries.reference[..., : first.reference.shape[-1]], first.reference)
    for group in predictions.values():
        assert torch.equal(group.logits, group.logits[:1].expand_as(group.logits))
        assert torch.equal(group.boxes, group.boxes[:1].expand_as(group.boxes))
    boxes = torch.cat([group.boxes[0] for group in predictions.values()], dim=1)
    if first.reference is not None:
        assert torch.equal(boxes[..., : first.reference.shape[-1]], first.reference)
    if model.decoder.refine_boxes:
        assert torch.equal(others[-1].reference, boxes)
    heads, norm = model.decoder.heads, model.decoder.norm
    logits = torch.cat([group.logits[0] for group in predictions.values()], dim=1)
    entered = first.content if norm is None else norm(first.content)
    torch.testing.assert_close(logits, heads.classes(entered, 0), atol=1e-5, rtol=1e-5)
    sizes = heads.boxes(entered, 0).sigmoid()
    known = 0 if first.reference is None else first.reference.shape[-1]
    torch.testing.assert_close(boxes[..., known:], sizes[..., known:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", DETECTORS)
def test_shut_routers_of_cross_attention(name: str):
    """EEQR_CA: references and predictions are kept; contents are those of self-attention alone."""
    model = routed(name, scheme="cross_attn").eval()
    force_routers(model, 0.0)
    entering, attended = watched(model.decoder), []
    for layer in model.decoder.layers:
        layer.norm1.register_forward_hook(lambda module, args, out: attended.append(out))
    main = model.predict(torch.randn(2, 3, 64, 96), None)["main"]
    assert torch.equal(main.logits, main.logits[:1].expand_as(main.logits))
    assert torch.equal(main.boxes, main.boxes[:1].expand_as(main.boxes))
    for before, queries in zip(attended, entering[1:], strict=False):
        assert torch.equal(queries.content, before)
        if model.decoder.refine_boxes:
            assert torch.equal(queries.reference, main.boxes[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["dab_detr", "deformable_detr", "dino"])
def test_shut_routers_of_self_attention(name: str):
    """EEQR_SA: cross-attention works on all queries, so none bypasses the layer: all references and predictions are
    new, as in a layer without self-attention."""
    model = routed(name, scheme="self_attn", ffn="modified").eval()
    force_routers(model, 0.0)
    plain = detector(name).eval()
    for layer in plain.decoder.layers:
        layer.self_attention = lambda queries, layout, index: queries.content
    images = torch.randn(2, 3, 64, 96)
    found, expected = (each.predict(images, None)["main"] for each in (model, plain))
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)
    assert not torch.allclose(found.boxes[0], found.boxes[1], atol=1e-3)


MASKS = torch.tensor(
    [  # by layer and query: passes none, all, the first, the middle, the last, first and last layer
        [0, 1, 1, 0, 0, 1, 1, 0, 1, 1],
        [0, 1, 0, 1, 0, 0, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 1, 1, 0, 1, 1],
    ]
).bool()


@torch.no_grad()
@pytest.mark.parametrize("regroup", ["scatter", "concat"])
@pytest.mark.parametrize("scheme", ["full", "cross_attn"])
@pytest.mark.parametrize("name", ["conditional_detr", "dab_detr", "deformable_detr", "deformable_detr_plus_plus"])
def test_bypassing_queries_keep_their_predictions_query_by_query(name: str, scheme: str, regroup: str):
    model = routed(name, scheme=scheme, regroup=regroup).eval()
    force_routers(model, list(MASKS))
    decoder, entering, contents = model.decoder, watched(model.decoder), []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, args, out: contents.append(out.content))
    main = model.predict(torch.randn(1, 3, 64, 96), None)["main"]
    query_of = list(range(QUERIES))  # the one in each row
    last: dict[int, tuple[Tensor, Tensor]] = {}
    for index, mask in enumerate(MASKS):
        passing = [query_of[row] for row in range(QUERIES) if mask[row]]
        rows = [row for row in range(QUERIES) if mask[row]]
        if regroup == "concat":
            query_of = passing + [query_of[row] for row in range(QUERIES) if not mask[row]]
            rows = list(range(len(passing)))
        content = contents[index] if decoder.norm is None else decoder.norm(contents[index])
        logits, delta = decoder.heads(content, index)
        boxes = decoder.shift(entering[index].reference, delta)
        for row, query in enumerate(query_of):
            if row in rows:
                last[query] = logits[0, row], boxes[0, row]
            if query in last:
                torch.testing.assert_close(main.logits[index, 0, row], last[query][0], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(main.boxes[index, 0, row], last[query][1], atol=1e-5, rtol=1e-5)
    assert regroup == "scatter" or query_of != list(range(QUERIES))


@pytest.mark.parametrize("look_forward_twice", [True, False])
def test_gradients_pass_by_the_layers_that_a_query_bypasses(look_forward_twice: bool):
    """The box of a query in a layer teaches the heads of the layer that has predicted it and, with look-forward-twice,
    of the one that the query passed before."""
    torch.manual_seed(0)
    model = switch_on(detector("dino", Denoising), QueryRouting(scheme="full"))
    model.decoder.look_forward_twice = look_forward_twice
    for head in model.decoder.heads.box_heads.parameters():
        nn.init.normal_(head, std=0.1)
    force_routers(model, list(MASKS))
    main = training_step(model, make_batch())[0]["main"]
    taught = {query: heads_that_learn(model, main.boxes[-1, :, query]) for query in range(6)}
    twice = look_forward_twice
    assert taught == {0: [], 1: [1, 2] if twice else [2], 2: [0], 3: [1], 4: [2], 5: [0, 2] if twice else [2]}


def heads_that_learn(model: DetectionTransformer, boxes: Tensor) -> list[int]:
    heads = [head.layers[-1].weight for head in model.decoder.heads.box_heads]
    if not boxes.requires_grad:
        return []
    gradients = torch.autograd.grad(boxes.sum(), heads, retain_graph=True, allow_unused=True)
    return [index for index, gradient in enumerate(gradients) if gradient is not None and gradient.any()]


@pytest.mark.parametrize("name", ["dab_detr", "dn_detr"])
def test_anchors_of_queries_that_never_pass_learn_from_their_boxes(name: str):
    """They are the boxes that are predicted."""
    model = routed(name, scheme="full")
    force_routers(model, 0.0)
    main = training_step(model, make_batch())[0]["main"]
    assert torch.equal(
        main.boxes[-1, 0], torch.cat([model.query_source.centres, model.query_source.sizes], -1).sigmoid()
    )
    main.boxes[-1].sum().backward()
    assert model.query_source.sizes.grad.any()
