"""D3ETR: matching by brute force, losses by loops, equality with the teacher, who matches whom, and what is refused."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from detrx.d2.structures import ImageList
from detrx.layers import Attention, AttentionInputs, MultiheadAttention, cxcywh_to_xyxy, iou_xyxy, recording
from detrx.modeling import DetectionTransformer, HungarianMatcher, MatchingCost, Predictions, Targets
from detrx.modeling.batch_norm import freeze_batch_norm
from detrx.modeling.matching import assign_all
from detrx.projects.d3etr import Distillation
from detrx.projects.d3etr.losses import AttentionDistillation, ClassDistillation, GIoUDistillation, L1Distillation
from detrx.projects.d3etr.matching import AdaptiveMatcher, DistillationCost, OfTeacher, SoftClasses, in_order
from detrx.projects.d3etr.teacher import freeze
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_model
from tests.projects.contract import METHODS, detector, distillation, losses_of, make_batch, switch_on, training_step

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


def quiet(model: DetectionTransformer) -> DetectionTransformer:
    """Without dropout, with the stored statistics of batch norm."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attention):
            module.dropout = 0.0
    model.backbone = freeze_batch_norm(model.backbone)
    return model


def taught_by(method: Distillation, teacher: DetectionTransformer) -> Distillation:
    teacher = copy.deepcopy(teacher)
    teacher.methods = nn.ModuleList()
    method.teacher._model = freeze(teacher)
    return method


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
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_prediction_losses_by_a_loop(softmax: bool, reduction: str):
    student, teacher = make_predictions(2, 2, 3), make_predictions(2, 2, 4, seed=1)
    student.logits.requires_grad_()
    matcher = AdaptiveMatcher(DistillationCost(SoftClasses(softmax)), teacher)
    pairs = matcher.assign(student, NOTHING)
    losses = [ClassDistillation(1.0, teacher, SoftClasses(softmax, reduction))]
    losses += [L1Distillation(1.0, teacher), GIoUDistillation(1.0, teacher)]
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
    torch.testing.assert_close(torch.stack(found).detach(), expected / 6, atol=1e-5, rtol=1e-4)
    (own,) = torch.autograd.grad(found[0].sum(), student.logits)
    (of_cross_entropy,) = torch.autograd.grad(cross_entropy / 6, student.logits)
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


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr"])
def test_equal_student_has_nothing_to_learn(name: str):
    """Losses are zero and gradients vanish, whatever the order of the queries."""
    model = quiet(detector(name))
    method = taught_by(distillation(), model)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        source = model.query_source
        rows = [source.centres, source.sizes] if name == "dab_detr" else [source.pos.weight]
        for parameter in rows:
            parameter.copy_(parameter[order])
    switch_on(model, method)
    losses = {key: loss for key, loss in losses_of(model, make_batch(3, 1)).items() if "distill" in key}
    assert len(losses) == 2 * 5 * 3
    assert all(loss.item() == pytest.approx(0, abs=2e-3) for loss in losses.values()), losses
    largest = largest_gradient(model, losses)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=noise))
    losses = {key: loss for key, loss in losses_of(model, make_batch(3, 1)).items() if "distill" in key}
    assert largest < 1e-3 * largest_gradient(model, losses)


def largest_gradient(model: DetectionTransformer, losses: dict[str, Tensor]) -> float:
    """Of all but the box losses, which have a kink where they are zero, and rounding on either side of it."""
    model.zero_grad()
    sum(loss for key, loss in losses.items() if "bbox" not in key and "giou" not in key).backward()
    return max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)


def test_box_losses_of_equal_boxes_have_no_gradient():
    teacher = make_predictions(2, 2, 3)
    student = Predictions(teacher.logits.clone().requires_grad_(), teacher.boxes.clone().requires_grad_())
    pairs = in_order(student, teacher).assign(student, NOTHING)
    for loss in (L1Distillation(1.0, teacher), GIoUDistillation(1.0, teacher)):
        values = loss(student, NOTHING, pairs)
        assert values.abs().max() < 1e-3
        (gradient,) = torch.autograd.grad(values.sum(), student.boxes)
        assert gradient.abs().max() < 1e-3


def test_student_learns_the_teacher():
    """A few steps on one batch bring predictions and maps nearer, by adaptive matching and by fixed matching."""
    model = quiet(detector("conditional_detr"))
    switch_on(model, distillation())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch, totals = make_batch(2, 1), []
    for _ in range(6):
        losses = losses_of(model, batch)
        groups = [
            sum(v for k, v in losses.items() if "distill" in k and k.endswith("_teacher") == aux) for aux in (0, 1)
        ]
        totals.append([group.item() for group in groups])
        optimizer.zero_grad()
        sum(groups).backward()
        optimizer.step()
    assert all(last < 0.8 * first for first, last in zip(totals[0], totals[-1], strict=True)), totals


@pytest.mark.parametrize(
    ("options", "parts", "groups"),
    [
        ({"losses": ["prediction"], "auxiliary": None}, ["class", "bbox", "giou"], [""]),
        ({"losses": ["self_attention"], "auxiliary": None}, ["self_attn"], [""]),
        ({"losses": ["cross_attention"], "matching": None}, ["cross_attn"], ["_teacher"]),
        (
            {"losses": ["prediction"], "matching": "random", "auxiliary": "adaptive"},
            ["class", "bbox", "giou"],
            ["", "_teacher"],
        ),
        ({"losses": []}, [], []),
    ],
)
def test_every_part_can_be_left_out(options: dict, parts: list[str], groups: list[str]):
    model = switch_on(detector("conditional_detr"), distillation(**options))
    found = {name for name in losses_of(model, make_batch()) if "distill" in name}
    numbers = ("_0", "_1", "")
    assert found == {f"loss_distill_{part}{n}{group}" for part in parts for n in numbers for group in groups}


@pytest.mark.parametrize(("constraint", "layers"), [("none", []), ("last", [2]), ("all", [0, 1, 2])])
def test_layers_with_the_assignment_of_the_teacher(constraint: str, layers: list[int]):
    model = switch_on(detector("conditional_detr"), distillation(constraint=constraint))
    predictions, supervisions = training_step(model, make_batch())
    of_group = [each for each in supervisions if each.group == "teacher" and each.losses[0].name == "loss_class"]
    taught = [n for each in of_group if isinstance(each.assigner, OfTeacher) for n in each.numbers(3)]
    own = [n for each in of_group if not isinstance(each.assigner, OfTeacher) for n in each.numbers(3)]
    assert taught == layers and sorted(own + taught) == [0, 1, 2]
    for each in of_group:
        if isinstance(each.assigner, OfTeacher):
            assert each.assigner.teacher.logits.shape == each.select(predictions["teacher"]).logits.shape


def test_weight_of_the_auxiliary_group():
    batch = make_batch()
    one, half = (
        losses_of(switch_on(quiet(detector("conditional_detr")), distillation(auxiliary_weight=w)), batch)
        for w in (1.0, 0.5)
    )
    for key, loss in one.items():
        factor = 0.5 if key.endswith("_teacher") else 1.0
        torch.testing.assert_close(half[key], factor * loss, msg=key)


def test_queries_of_the_teacher_are_the_auxiliary_group():
    model = switch_on(quiet(detector("conditional_detr")), distillation())
    method = model.methods[-1]
    training_step(model, make_batch())
    teacher = method.teacher._model
    seen = []
    forward = model.decoder.forward
    model.decoder.forward = lambda groups, memory: seen.extend(groups) or forward(groups, memory)
    training_step(model, make_batch())
    (group,) = (each for each in seen if each.name == "teacher")
    assert torch.equal(group.pos[0], teacher.query_source.pos.weight) and not group.pos.requires_grad
    assert group.sees == () and all("teacher" not in each.sees for each in seen)


@pytest.mark.parametrize("other", ["hybrid_branch", "mr_detr_all_own"])
@pytest.mark.parametrize("first", [True, False])
def test_other_methods_change_nothing(other: str, first: bool):
    """Their groups are in the same decoder, with attentions of its own or theirs."""
    batch = make_batch()
    expected = losses_of(switch_on(quiet(detector("conditional_detr")), distillation()), batch)
    methods = [METHODS[other].make(), distillation()]
    found = losses_of(switch_on(quiet(detector("conditional_detr")), *(methods if first else methods[::-1])), batch)
    assert len(found) > len(expected)
    for key, loss in expected.items():
        torch.testing.assert_close(found[key], loss, atol=1e-3, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("queries", "layers"), [(14, 3), (6, 3), (10, 5), (10, 2)])
def test_other_numbers_of_queries_and_layers(queries: int, layers: int):
    """The last layers are compared; with fewer queries of the teacher some of the student's learn nothing."""

    def change(cfg: DictConfig) -> None:
        cfg.decoder.num_layers = layers
        cfg.backbone.model_args.layers = [1, 1, 2, 1]

    torch.manual_seed(0)
    teacher = make_model("conditional_detr/conditional_detr_digits.py", change)
    teacher.query_source.pos = nn.Embedding(queries, 64)
    model = switch_on(detector("conditional_detr"), taught_by(distillation(constraint="all"), teacher))
    assert training_step(model, make_batch())[0]["teacher"].logits.shape[2] == queries
    losses = losses_of(model, make_batch())
    first = 3 - min(layers, 3)
    numbers = {f"_{n}" if n < 2 else "" for n in range(first, 3)}
    for group in ("", "_teacher"):
        found = {
            key
            for key in losses
            if key.startswith("loss_distill_cross_attn") and key.endswith("_teacher") == bool(group)
        }
        assert found == {f"loss_distill_cross_attn{n}{group}" for n in numbers}
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


def test_images_are_normalised_again_for_the_teacher():
    model = quiet(detector("conditional_detr"))
    other = copy.deepcopy(model)
    other.pixel_mean, other.pixel_std = other.pixel_mean + 10, other.pixel_std * 2
    batch = make_batch()
    method = taught_by(distillation(), other)
    with pytest.raises(ValueError, match="share_images=False"):
        losses_of(switch_on(copy.deepcopy(model), method), batch)
    method.teacher.share_images = False
    found = method.teacher.teach(model, model.preprocess(batch), ["self_attn"])
    expected = method.teacher._model.preprocess(batch)
    again = method.teacher.renormalised(model, other, model.preprocess(batch))
    torch.testing.assert_close(again.tensor, expected.tensor, atol=1e-4, rtol=1e-4)
    direct = method.teacher.teach(
        method.teacher._model, ImageList(expected.tensor, expected.image_sizes), ["self_attn"]
    )
    torch.testing.assert_close(found.predictions.boxes, direct.predictions.boxes, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": "prediction"}, "losses must be a list"),
        ({"losses": ["encoder"]}, "losses must be a list of some of"),
        ({"matching": "hungarian"}, "matching must be one of"),
        ({"auxiliary": "fixed"}, "auxiliary must be one of"),
        ({"constraint": "first"}, "constraint must be one of"),
        ({"inherit": "encoder"}, "inherit must be a list"),
        ({"l1_weight": -1.0}, "l1_weight below 0"),
        ({"class_reduction": "max"}, "class_reduction must be one of"),
        ({"teacher": 3}, "teacher must be the file or name of a config"),
        ({"teacher": {"train": 1}}, "teacher must be the file or name of a config"),
    ],
)
def test_values_that_make_no_sense(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Distillation(**{"teacher": "detr/detr_digits.py", **arguments})


def test_routed_layers_have_no_maps_of_all_queries():
    model = switch_on(detector("conditional_detr"), QueryRouting(router=FixedRouter(1.0)))
    with pytest.raises(ValueError, match="decoder layer 0 of the student is a RoutedDecoderLayer"):
        switch_on(copy.deepcopy(model), distillation())
    losses = losses_of(switch_on(model, distillation(losses=["prediction"])), make_batch())
    assert np.isfinite([loss.item() for loss in losses.values()]).all()
