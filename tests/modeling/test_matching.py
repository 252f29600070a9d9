"""Costs, assignment and criterion against brute force and hand-made values."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
import torchvision

from detrx.d2.structures import Boxes, Instances
from detrx.modeling import (
    Criterion,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    KnownPairs,
    L1Loss,
    MatchingCost,
    Predictions,
    Supervision,
    Targets,
    TopKAssigner,
    VarifocalLoss,
)
from detrx.modeling.matching import assign_all, chosen_pairs
from tests.pretended_cuda.harness import on_pretended_cuda, waits

CLASSES = 3


def make_targets(*counts: int) -> Targets:
    instances = []
    for count in counts:
        corner = torch.rand(count, 2) * 50
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 40], dim=1)
        instances.append(Instances((100, 200), gt_boxes=Boxes(boxes), gt_classes=torch.randint(CLASSES, (count,))))
    return Targets.from_instances(instances, [f"img{i}" for i in range(len(counts))], torch.device("cpu"))


def make_predictions(layers: int, batch: int, queries: int) -> Predictions:
    return Predictions(
        torch.randn(layers, batch, queries, CLASSES, requires_grad=True),
        (torch.rand(layers, batch, queries, 4) * 0.5 + 0.2).requires_grad_(),
    )


def pairs_of(assignment, layer: int, image: int) -> set[tuple[int, int]]:
    here = (assignment.layer == layer) & (assignment.image == image)
    return set(zip(assignment.query[here].tolist(), assignment.truth[here].tolist(), strict=True))


def test_targets_are_normalised_and_padded():
    instances = [
        Instances((50, 100), gt_boxes=Boxes(torch.tensor([[10.0, 10, 30, 20]])), gt_classes=torch.tensor([2])),
        Instances((50, 100), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long)),
    ]
    targets = Targets.from_instances(instances, [0, 1], torch.device("cpu"))
    assert targets.counts == (1, 0)
    assert targets.boxes[0, 0].tolist() == pytest.approx([0.2, 0.3, 0.2, 0.2])
    assert targets.valid.tolist() == [[True], [False]]


def test_cost_terms():
    predictions, targets = make_predictions(1, 1, 4), make_targets(3)
    cost = MatchingCost(0.0, 5.0, 2.0)(predictions, targets)[0, 0]
    boxes, truth = predictions.boxes[0, 0], targets.boxes[0]
    to_xyxy = torchvision.ops.box_convert
    giou = torchvision.ops.generalized_box_iou(to_xyxy(boxes, "cxcywh", "xyxy"), to_xyxy(truth, "cxcywh", "xyxy"))
    l1 = (boxes[:, None] - truth[None]).abs().sum(-1)
    torch.testing.assert_close(cost, 5 * l1 - 2 * giou, atol=1e-4, rtol=1e-4)
    p = predictions.logits[0, 0].sigmoid()
    class_cost = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    only_class = MatchingCost(2.0, 0.0, 0.0)(predictions, targets)[0, 0]
    torch.testing.assert_close(only_class, 2 * class_cost[:, targets.labels[0]], atol=1e-5, rtol=1e-5)


def test_hungarian_matcher_against_brute_force():
    predictions, targets = make_predictions(2, 3, 5), make_targets(3, 0, 2)
    matcher = HungarianMatcher(MatchingCost())
    assignment = matcher.assign(predictions, targets)
    cost = matcher.cost(predictions, targets)
    for layer, image in itertools.product(range(2), range(3)):
        count = targets.counts[image]
        best = min(
            itertools.permutations(range(5), count),
            key=lambda queries: sum(cost[layer, image, q, g].item() for g, q in enumerate(queries)),
        )
        assert pairs_of(assignment, layer, image) == {(q, g) for g, q in enumerate(best)}


def test_copies_equal_a_repeated_ground_truth():
    predictions, targets = make_predictions(2, 2, 9), make_targets(3, 2)
    found = HungarianMatcher(MatchingCost(), copies=3).assign(predictions, targets)
    for image, count in enumerate(targets.counts):
        repeated = replace(
            targets,
            labels=targets.labels[image : image + 1, :count].repeat(1, 3),
            boxes=targets.boxes[image : image + 1, :count].repeat(1, 3, 1),
            counts=(3 * count,),
            image_ids=(image,),
        )
        one = Predictions(predictions.logits[:, image : image + 1], predictions.boxes[:, image : image + 1])
        expected = HungarianMatcher(MatchingCost()).assign(one, repeated)
        for layer in range(2):
            pairs = {(query, truth % count) for query, truth in pairs_of(expected, layer, 0)}
            assert pairs_of(found, layer, image) == pairs and len(pairs) == 3 * count


def test_limit_of_copies():
    counts = (2, 5, 40, 0, 1)
    sane = HungarianMatcher(MatchingCost(), copies=3, max_share=0.5)
    assert sane.copies_of(counts, 20) == [3, 2, 1, 3, 3]
    published = HungarianMatcher(MatchingCost(), copies=3, max_share=0.5, carry_limit=True)
    assert published.copies_of(counts, 20) == [3, 2, 0, 0, 0]
    assert HungarianMatcher(MatchingCost(), copies=3).copies_of(counts, 20) == [3] * 5
    assert len(published.assign(make_predictions(1, 2, 4), make_targets(4, 1)).query) == 0
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        HungarianMatcher(MatchingCost(), copies=0)


def test_more_boxes_than_queries():
    assignment = HungarianMatcher(MatchingCost()).assign(make_predictions(1, 1, 2), make_targets(4))
    assert len(assignment.query) == 2 and set(assignment.query.tolist()) == {0, 1}


@on_pretended_cuda
def test_the_host_waits_once_for_all_assignments_of_a_step():
    matcher, top_k = HungarianMatcher(MatchingCost()), TopKAssigner(MatchingCost())
    many, few = make_predictions(3, 2, 5), make_predictions(1, 2, 40)
    known = KnownPairs(*torch.tensor([[0, 1, 1], [2, 0, 4], [0, 0, 1]]))
    targets = make_targets(3, 2)
    expected = [each.assign(some, targets) for each, some in ((matcher, many), (top_k, few), (matcher, few))]
    expected.append(known.assign(many, targets))

    def there(x):
        tensors = {f.name: getattr(x, f.name) for f in fields(x) if isinstance(getattr(x, f.name), torch.Tensor)}
        return replace(x, **{name: tensor.detach().to("cuda") for name, tensor in tensors.items()})

    many, few, targets = there(many), there(few), there(targets)
    known = KnownPairs(*(index.to("cuda") for index in (known.image, known.query, known.truth)))
    with waits() as found:
        requests = [(matcher, many), (top_k, few), (matcher, few), (known, many)]
        answers = assign_all([(*request, targets) for request in requests])
    assert found.count == 1, found
    for answer, right in zip(answers, expected, strict=True):
        for part in ("layer", "image", "query", "truth"):
            index = getattr(answer, part)
            assert index.device.type == "cuda" and index.tolist() == getattr(right, part).tolist()


@pytest.mark.parametrize("shape", [(2, 3, 7, 4), (1, 2, 5, 0), (3, 1, 1, 1)])
def test_chosen_pairs_are_in_the_order_of_their_places(shape: tuple[int, ...]):
    mask = torch.rand(shape) < 0.3
    pairs = chosen_pairs(mask, int(mask.sum()))
    expected = mask.nonzero(as_tuple=True)
    for index, right in zip((pairs.layer, pairs.image, pairs.query, pairs.truth), expected, strict=True):
        assert torch.equal(index, right)


def test_top_k_takes_the_cheapest_and_resolves_conflicts():
    boxes = torch.tensor([[0.3, 0.5, 0.2, 0.2], [0.32, 0.5, 0.2, 0.2], [0.45, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    predictions = Predictions(torch.zeros(1, 1, 4, CLASSES), boxes[None, None])
    instances = Instances(
        (100, 100),
        gt_boxes=Boxes(torch.tensor([[20.0, 40, 40, 60], [35.0, 40, 55, 60]])),  # centres at .3 and .45
        gt_classes=torch.tensor([0, 1]),
    )
    targets = Targets.from_instances([instances], [0], torch.device("cpu"))
    assignment = TopKAssigner(MatchingCost(0.0, 5.0, 2.0), k=2).assign(predictions, targets)
    # Both want query 1; it costs the first less.
    assert pairs_of(assignment, 0, 0) == {(0, 0), (1, 0), (2, 1)}


def test_top_k_without_boxes_and_with_too_few_predictions():
    assigner = TopKAssigner(MatchingCost(), k=6)
    assert len(assigner.assign(make_predictions(2, 2, 5), make_targets(0, 0)).query) == 0
    assignment = assigner.assign(make_predictions(1, 2, 3), make_targets(1, 0))
    assert pairs_of(assignment, 0, 0) == {(0, 0), (1, 0), (2, 0)} and not pairs_of(assignment, 0, 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        TopKAssigner(MatchingCost(), k=0)


def test_focal_loss_against_torchvision():
    predictions, targets = make_predictions(2, 2, 5), make_targets(3, 1)
    pairs = HungarianMatcher(MatchingCost()).assign(predictions, targets)
    one_hot = torch.zeros_like(predictions.logits)
    for layer, image, query, truth in zip(pairs.layer, pairs.image, pairs.query, pairs.truth, strict=True):
        one_hot[layer, image, query, targets.labels[image, truth]] = 1
    expected = torchvision.ops.sigmoid_focal_loss(predictions.logits, one_hot, 0.25, 2.0).sum((1, 2, 3))
    torch.testing.assert_close(FocalLoss()(predictions, targets, pairs), expected)


def test_varifocal_loss_by_hand():
    predictions = Predictions(
        torch.tensor([[[[0.0, 1.0]]]], requires_grad=True), torch.tensor([[[[0.5, 0.5, 0.4, 0.4]]]])
    )
    instances = Instances((10, 10), gt_boxes=Boxes(torch.tensor([[3.0, 3.0, 5.0, 7.0]])), gt_classes=torch.tensor([0]))
    targets = Targets.from_instances([instances], [0], torch.device("cpu"))
    pairs = HungarianMatcher(MatchingCost()).assign(predictions, targets)
    loss = VarifocalLoss(alpha=0.75, gamma=2.0)(predictions, targets, pairs)
    iou, p = 0.5, torch.tensor([0.0, 1.0]).sigmoid()
    positive = iou * -(iou * p[0].log() + (1 - iou) * (1 - p[0]).log())
    negative = 0.75 * p[1] ** 2 * -(1 - p[1]).log()
    torch.testing.assert_close(loss, (positive + negative)[None], atol=1e-5, rtol=1e-5)


def make_criterion() -> Criterion:
    losses = [FocalLoss(1.0), L1Loss(5.0), GIoULoss(2.0)]
    matcher = HungarianMatcher(MatchingCost())
    return Criterion(
        [
            Supervision("main", matcher, losses),
            Supervision("encoder", matcher, losses, suffix="_enc", class_agnostic=True, weight=3.0),
        ]
    )


def test_criterion_names_weights_and_normalisation():
    predictions = {"main": make_predictions(2, 2, 5), "encoder": make_predictions(1, 2, 9)}
    targets = make_targets(3, 1)
    losses = make_criterion()(predictions, targets)
    kinds = ("loss_class", "loss_bbox", "loss_giou")
    assert set(losses) == {kind + suffix for kind in kinds for suffix in ("", "_0", "_enc")}
    assignments = make_criterion().assign(predictions, targets)
    l1 = L1Loss()(predictions["main"], targets, assignments[0])
    torch.testing.assert_close(torch.stack([losses["loss_bbox_0"], losses["loss_bbox"]]), 5.0 * l1 / 4)
    focal = FocalLoss()(predictions["encoder"], targets.class_agnostic(), assignments[1])
    torch.testing.assert_close(losses["loss_class_enc"], 3.0 * focal[0] / 4)


def test_no_boxes_at_all_leaves_only_the_class_loss():
    predictions = {"main": make_predictions(2, 2, 5), "encoder": make_predictions(1, 2, 9)}
    losses = make_criterion()(predictions, make_targets(0, 0))
    assert all(value == 0 for name, value in losses.items() if "class" not in name)
    assert losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert torch.isfinite(predictions["main"].boxes.grad).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_names_the_images(value: float):
    predictions = {"main": make_predictions(1, 3, 5), "encoder": make_predictions(1, 3, 5)}
    with torch.no_grad():
        predictions["main"].boxes[0, 1, 2] = value
    with pytest.raises(FloatingPointError, match=r"image ids \['img1'\].*diverged"):
        make_criterion()(predictions, make_targets(1, 2, 1))


def test_supervision_of_a_missing_group():
    with pytest.raises(KeyError, match=r"'encoder'.*'main'"):
        make_criterion()({"main": make_predictions(1, 1, 5)}, make_targets(1))


def test_names_of_losses():
    predictions, targets = {"main": make_predictions(3, 1, 5)}, make_targets(2)
    matcher, losses = HungarianMatcher(MatchingCost()), [L1Loss()]
    for numbering, expected in (
        ("before", ["loss_bbox_0_x", "loss_bbox_1_x", "loss_bbox_x"]),
        ("after", ["loss_bbox_x_0", "loss_bbox_x_1", "loss_bbox_x"]),
        ("all", ["loss_bbox_x_0", "loss_bbox_x_1", "loss_bbox_x_2"]),
    ):
        criterion = Criterion([Supervision("main", matcher, losses, suffix="_x", numbering=numbering)])
        assert list(criterion(predictions, targets)) == expected
    with pytest.raises(ValueError, match=r"numbering must be one of .*'behind'"):
        Supervision("main", matcher, losses, numbering="behind")


def test_supervision_of_some_layers():
    """Two supervisions that share the layers give what one of all layers gives, with the names of the layers."""
    predictions, targets = {"main": make_predictions(3, 2, 5)}, make_targets(3, 1)
    matcher, losses = HungarianMatcher(MatchingCost()), [FocalLoss(), L1Loss()]
    whole = Criterion([Supervision("main", matcher, losses)])
    parts = Criterion(
        [Supervision("main", matcher, losses, layers=layers) for layers in ((None, -1), (-1, None), (3, 3))]
    )
    assert parts.of_last_layer("main") is parts.supervisions[1]
    with pytest.raises(ValueError, match="no supervision of the last layer of group 'encoder'"):
        parts.of_last_layer("encoder")
    expected, found = whole(predictions, targets), parts(predictions, targets)
    assert found.keys() == expected.keys() and len(found) == 6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize(
    "layers, at, expected",
    [
        ((None, None), 2, [[0, 1], [2, 3]]),
        ((None, -1), 3, [[0, 1, 2], []]),
        ((-1, None), 3, [[], [3]]),
        ((1, 3), 2, [[1], [2]]),
        ((2, 2), 1, [[], []]),
        ((None, None), 0, [[], [0, 1, 2, 3]]),
    ],
)
def test_splitting_a_supervision_by_layers(layers: tuple, at: int, expected: list):
    supervision = Supervision("main", HungarianMatcher(MatchingCost()), [L1Loss()], suffix="_x", layers=layers)
    parts = supervision.split(at, 4)
    assert [[n for part in side for n in part.numbers(4)] for side in parts] == expected
    assert [len(side) for side in parts] == [bool(numbers) for numbers in expected]
    assert all(part.suffix == "_x" for side in parts for part in side)


def test_no_loss_replaces_another_of_the_same_name():
    supervision = Supervision("main", HungarianMatcher(MatchingCost()), [L1Loss(5.0)])
    predictions, targets = {"main": make_predictions(1, 1, 4)}, make_targets(1)
    with pytest.raises(ValueError, match="two supervisions give a loss 'loss_bbox'"):
        Criterion([supervision, supervision])(predictions, targets)


def test_known_pairs_hold_in_all_layers():
    image, query, truth = torch.tensor([[0, 1, 1], [4, 0, 2], [0, 0, 1]])
    pairs = KnownPairs(image, query, truth).assign(make_predictions(2, 2, 5), make_targets(1, 2))
    for layer in range(2):
        assert pairs_of(pairs, layer, 0) == {(4, 0)} and pairs_of(pairs, layer, 1) == {(0, 0), (2, 1)}
