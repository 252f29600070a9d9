"""D3ETR in detectors: a student that equals its teacher, what is switched on and off, who is compared with whom."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detrx.d2.structures import ImageList
from detrx.layers import Attention
from detrx.modeling import DetectionTransformer
from detrx.modeling.batch_norm import freeze_batch_norm
from detrx.projects.d3etr import Distillation
from detrx.projects.d3etr.matching import OfTeacher
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_model
from tests.projects.contract import METHODS, detector, distillation, losses_of, make_batch, switch_on, training_step


def quiet(model: DetectionTransformer) -> DetectionTransformer:
    """Without dropout, with the stored statistics of batch norm."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attention):
            module.dropout = 0.0
    model.backbone = freeze_batch_norm(model.backbone)
    return model


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr"])
def test_equal_student_has_nothing_to_learn(name: str):
    """Losses are zero and gradients vanish, whatever the order of the queries."""
    model = quiet(detector(name))
    method = distillation(model)
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


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", ["hybrid_epoch", "hybrid_layer", "quality_aware"])
def test_auxiliary_group_is_supervised_as_the_main_one_in_this_step(method: str, first: bool):
    """Whatever other methods change of the supervision, before or after Distillation in the list."""
    other, own = METHODS[method].make(), distillation(constraint="none")
    model = switch_on(detector("conditional_detr"), *([own, other] if first else [other, own]))
    supervisions = training_step(model, make_batch())[1]
    main, group = (
        [each for each in supervisions if each.group == name and "distill" not in each.losses[0].name]
        for name in ("main", "teacher")
    )
    assert main[0].assigner is not model.criterion.supervisions[0].assigner
    found, expected = (
        [(*each.numbers(3), each.assigner, each.losses, each.repeats) for each in of] for of in (group, main)
    )
    assert found == expected
    assert losses_of(model, make_batch()).keys() >= {"loss_class_0_teacher", "loss_class_teacher"}


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
    model = switch_on(detector("conditional_detr"), distillation(teacher, constraint="all"))
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
    method = distillation(other)
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
        ({"queries": "both"}, "queries must be one of"),
        ({"queries": "teacher", "matching": None}, 'matching is None: set matching="index"'),
        ({"auxiliary_queries": "own", "auxiliary": None}, 'auxiliary_queries="own", but there is no auxiliary group'),
        ({"queries": "teacher", "auxiliary_queries": "own"}, "would train queries that are not used at inference"),
        ({"query_reduction": "max"}, "query_reduction must be one of"),
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
