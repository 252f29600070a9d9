"""D3ETR: matching by brute force, losses by loops, recorded attention maps against those of torch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.layers import AttentionInputs, MultiheadAttention, cxcywh_to_xyxy, iou_xyxy, recording
from detrx.modeling import HungarianMatcher, MatchingCost, Predictions, Targets
from detrx.modeling.matching import assign_all
from detrx.projects.d3etr.losses import AttentionDistillation, ClassDistillation, GIoUDistillation, L1Distillation
from detrx.projects.d3etr.matching import AdaptiveMatcher, DistillationCost, OfTeacher, SoftClasses, in_order

NOTHING = Targets(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, 4), (0, 0), ("a", "b"))


def make_predictions(layers: int, images: int, queries: int, classes: int = 3, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, classes, generator=generator)
    return Predictions(logits, 0.2 + 0.3 * torch.rand(layers, images, queries, 4, generator=generator))


def make_inputs(images: int, queries: int, keys: int, seed: int, blocked: Tensor | None = None) -> AttentionInputs:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(images, 2, count, 5, generator=generator) for count in (queries, keys))
    return AttentionInputs(q, k, blocked)


def pair_cost(p: Tensor, box: Tensor, other_p: Tensor, other_box: Tensor) -> float:
    _, giou = iou_xyxy(cxcywh_to_xyxy(box), cxcywh_to_xyxy(other_box))
    return (
        20 * F.binary_cross_entropy(p, other_p, reduction="sum") + 5 * (box - other_box).abs().sum() - 2 * giou
    ).item()


@pytest.mark.parametrize("softmax", [False, True])
def test_cost_of_a_pair(softmax: bool):
    student, teacher = make_predictions(2, 2, 3), make_predictions(2, 2, 4, seed=1)
    cost = DistillationCost(SoftClasses(softmax))(student, teacher)
    probabilities = [each.logits.softmax(-1) if softmax else each.logits.sigmoid() for each in (student, teacher)]
    for layer, image, i, j in itertools.product(range(2), range(2), range(3), range(4)):
        expected = pair_cost(
            probabilities[0][layer, image, i],
            student.boxes[layer, image, i],
            probabilities[1][layer, image, j],
            teacher.boxes[layer, image, j],
        )
        assert cost[layer, image, i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("own", "other"), [(3, 3), (3, 5), (5, 3)])
def test_assignment_is_the_cheapest_of_all(own: int, other: int):
    student, teacher = make_predictions(2, 2, own), make_predictions(2, 2, other, seed=1)
    matcher = AdaptiveMatcher(DistillationCost(SoftClasses()), teacher)
    pairs = matcher.assign(student, NOTHING)
    cost = matcher.host_cost(student, NOTHING)
    count = min(own, other)
    assert len(pairs.query) == 2 * 2 * count
    grid = [each.view(2, 2, count) for each in (pairs.layer, pairs.image, pairs.query, pairs.truth)]
    for layer, image in itertools.product(range(2), range(2)):
        assert (grid[0][layer, image] == layer).all() and (grid[1][layer, image] == image).all()
        query, truth = grid[2][layer, image].tolist(), grid[3][layer, image].tolist()
        assert query == sorted(set(query)) and len(set(truth)) == count
        of_image = cost[layer, image]
        if own <= other:
            best = min(sum(of_image[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(other), own))
        else:
            best = min(sum(of_image[i, j] for j, i in enumerate(p)) for p in itertools.permutations(range(own), other))
        assert sum(of_image[i, j] for i, j in zip(query, truth, strict=True)) == pytest.approx(best.item(), rel=1e-5)


def test_copies_of_one_prediction_set_are_found_again():
    teacher = make_predictions(3, 2, 6)
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(6)]).view(3, 2, 6)
    student = Predictions(*(x.take_along_dim(order[..., None], 2) for x in (teacher.logits, teacher.boxes)))
    pairs = AdaptiveMatcher(DistillationCost(SoftClasses(reduction="mean")), teacher).assign(student, NOTHING)
    assert torch.equal(pairs.truth.view(3, 2, 6), order)


def test_predictions_that_are_not_finite_name_their_images():
    student, teacher = make_predictions(1, 2, 3), make_predictions(1, 2, 3, seed=1)
    student.boxes[0, 1, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"\['b'\]"):
        AdaptiveMatcher(DistillationCost(SoftClasses()), teacher).assign(student, NOTHING)


def test_pairs_without_matching():
    student, teacher = make_predictions(2, 3, 4), make_predictions(2, 3, 6, seed=1)
    pairs = in_order(student, teacher).assign(student, NOTHING)
    assert torch.equal(pairs.query, pairs.truth) and torch.equal(pairs.query, torch.arange(4).repeat(6))
    torch.manual_seed(0)
    shuffled = in_order(student, teacher, shuffle=True).assign(student, NOTHING)
    truth = shuffled.truth.view(2, 3, 4)
    assert torch.equal(truth[0], truth[1]) and not torch.equal(truth[0, 0], truth[0, 1])
    assert all(len(set(of_image)) == 4 for of_image in truth[0].tolist())


def test_assignment_of_the_teacher():
    """Eq. 7: the student's predictions do not matter."""
    teacher, student = make_predictions(1, 2, 5), make_predictions(1, 2, 5, seed=1)
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.4, 0.4, 0.3, 0.3]], [[0.3, 0.4, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]]])
    targets = Targets(torch.tensor([[0, 2], [1, 0]]), boxes, (2, 1), (0, 1))
    matcher = HungarianMatcher(MatchingCost())
    (found,) = assign_all([(OfTeacher(matcher, teacher), student, targets)])
    expected, own = matcher.assign(teacher, targets), matcher.assign(student, targets)
    assert torch.equal(found.query, expected.query) and torch.equal(found.truth, expected.truth)
    assert not torch.equal(expected.query, own.query)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("reduction", "over_queries"), [("sum", "mean"), ("mean", "sum")])
def test_prediction_losses_by_a_loop(softmax: bool, reduction: str, over_queries: str):
    """Eq. 10, as printed with `over_queries="sum"`, for two images of three pairs."""
    student, teacher = make_predictions(2, 2, 3), make_predictions(2, 2, 4, seed=1)
    student.logits.requires_grad_()
    matcher = AdaptiveMatcher(DistillationCost(SoftClasses(softmax)), teacher)
    pairs = matcher.assign(student, NOTHING)
    losses = [ClassDistillation(1.0, teacher, SoftClasses(softmax, reduction), over_queries)]
    losses += [L1Distillation(1.0, teacher, over_queries), GIoUDistillation(1.0, teacher, over_queries)]
    count = 6 if over_queries == "mean" else 2
    found = [loss(student, NOTHING, pairs) for loss in losses]
    expected = torch.zeros(3, 2)
    cross_entropy = 0.0
    for layer, image, i, j in zip(*(each.tolist() for each in vars(pairs).values()), strict=True):
        p, target = (
            (x.softmax(-1) if softmax else x.sigmoid())
            for x in (student.logits[layer, image, i], teacher.logits[layer, image, j])
        )
        entropy = F.binary_cross_entropy(target, target, reduction=reduction)
        value = F.binary_cross_entropy(p, target, reduction=reduction)
        cross_entropy = cross_entropy + value
        box, other = student.boxes[layer, image, i], teacher.boxes[layer, image, j]
        giou = iou_xyxy(cxcywh_to_xyxy(box), cxcywh_to_xyxy(other))[1]
        expected[:, layer] += torch.stack([(value - entropy).detach(), (box - other).abs().sum(), 1 - giou])
    torch.testing.assert_close(torch.stack(found).detach(), expected / count, atol=1e-5, rtol=1e-4)
    (own,) = torch.autograd.grad(found[0].sum(), student.logits)
    (of_cross_entropy,) = torch.autograd.grad(cross_entropy / count, student.logits)
    torch.testing.assert_close(own, of_cross_entropy, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("between_queries", [True, False])
def test_attention_losses_by_a_loop(between_queries: bool, keep_maps: bool):
    images, own, other, tokens = 2, 3, 5, 7
    predictions = make_predictions(2, images, own)
    pairs = AdaptiveMatcher(DistillationCost(SoftClasses()), make_predictions(2, images, other, seed=1)).assign(
        predictions, NOTHING
    )
    blocked = None
    if not between_queries:
        blocked = torch.zeros(images, 1, 1, tokens, dtype=torch.bool)
        blocked[1, ..., 5:] = True
    keys = (own, other) if between_queries else (tokens, tokens)
    student = [make_inputs(images, own, keys[0], seed, blocked) for seed in (0, 1)]
    teacher = [make_inputs(images, other, keys[1], seed, blocked) for seed in (2, 3)]
    for each in student:
        each.q.requires_grad_()
    loss = AttentionDistillation(1.0, "loss", student, teacher, between_queries, keep_maps)
    found = loss(predictions, NOTHING, pairs)

    query, truth = pairs.query.view(2, images, -1), pairs.truth.view(2, images, -1)
    expected = []
    for layer in range(2):
        maps = [each[layer].weights() for each in (student, teacher)]
        terms = []
        for image, head in itertools.product(range(images), range(2)):
            for i, j in zip(query[layer, image].tolist(), truth[layer, image].tolist(), strict=True):
                columns = list(zip(query[layer, image].tolist(), truth[layer, image].tolist(), strict=True))
                columns = columns if between_queries else [(k, k) for k in range(tokens)]
                terms += [(maps[0][image, head, i, a] - maps[1][image, head, j, b]) ** 2 for a, b in columns]
        expected.append(torch.stack(terms).mean())
    torch.testing.assert_close(found, torch.stack(expected))
    inputs = [each.q for each in student]
    for a, b in zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(sum(expected), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_recorded_map_is_the_one_of_torch():
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.in_proj_weight,
            "in_proj_bias": ours.in_proj_bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    x, pos = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    with recording([ours]) as (calls,):
        out = ours.out_proj(ours.attend(*ours.project(x, pos), padding[:, None, None]))
    (call,) = calls
    expected, maps = theirs(
        x + pos, x + pos, x, key_padding_mask=padding, need_weights=True, average_attn_weights=False
    )
    torch.testing.assert_close(call.weights(), maps)
    torch.testing.assert_close(out, expected)
    ours.attend(*ours.project(x, pos))
    assert len(calls) == 1 and ours.record is None, "the recording goes on"


def test_box_losses_of_equal_boxes_have_no_gradient():
    teacher = make_predictions(2, 2, 3)
    student = Predictions(teacher.logits.clone().requires_grad_(), teacher.boxes.clone().requires_grad_())
    pairs = in_order(student, teacher).assign(student, NOTHING)
    for loss in (L1Distillation(1.0, teacher), GIoUDistillation(1.0, teacher)):
        values = loss(student, NOTHING, pairs)
        assert values.abs().max() < 1e-3
        (gradient,) = torch.autograd.grad(values.sum(), student.boxes)
        assert gradient.abs().max() < 1e-3
