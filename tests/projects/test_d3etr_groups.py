"""D3ETR, Table 5: whose queries a group has, how they are matched, and who assigns the ground truth to them."""

import copy

import pytest
import torch
from torch import nn

from detrx.modeling import DetectionTransformer, QueryGroup, Targets
from detrx.projects.d3etr import Distillation
from detrx.projects.d3etr.matching import AdaptiveMatcher, OfTeacher
from tests.modeling.small import make_input, make_model
from tests.projects.contract import METHODS, detector, distillation, losses_of, make_batch, switch_on, training_step

TABLE_5 = {
    "adaptive": {"auxiliary": None},
    "fixed": {"queries": "teacher", "matching": "index", "auxiliary": None},
    "adaptive twice": {"auxiliary": "adaptive", "auxiliary_queries": "own"},
    "fixed twice": {"queries": "teacher", "matching": "index"},
    "both": {},
}


def quiet_teacher(name: str = "conditional_detr") -> DetectionTransformer:
    """Like the student, with other weights."""
    teacher = detector(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return teacher


def groups_of(model: DetectionTransformer) -> dict[str, QueryGroup]:
    """The groups that a training step gives to the decoder."""
    found: dict[str, QueryGroup] = {}
    forward = model.decoder.forward

    def watched(groups, memory):
        found.update({group.name: group for group in groups})
        return forward(groups, memory)

    model.decoder.forward = watched
    training_step(model, make_batch())
    model.decoder.forward = forward
    return found


@pytest.mark.parametrize("row", TABLE_5)
def test_queries_of_the_groups(row: str):
    teacher = quiet_teacher()
    model = switch_on(detector("conditional_detr"), distillation(teacher, **TABLE_5[row]))
    own = model.query_source.pos.weight.detach().clone()
    taught, second = teacher.query_source.pos.weight, model.methods[-1].further
    groups = groups_of(model)
    expected = {
        "adaptive": {"main": own},
        "fixed": {"main": taught},
        "adaptive twice": {"main": own, "auxiliary": None if second is None else second.pos.weight},
        "fixed twice": {"main": taught, "teacher": taught},
        "both": {"main": own, "teacher": taught},
    }[row]
    assert groups.keys() == expected.keys()
    for name, group in groups.items():
        assert torch.equal(group.pos[0], expected[name]), name
        assert not group.sees


@pytest.mark.parametrize("row", TABLE_5)
def test_who_assigns_in_a_row_of_table_5(row: str):
    """The teacher, in the last layer of the groups with its queries; fixed pairs are the same in all layers."""
    model = switch_on(detector("conditional_detr"), distillation(quiet_teacher(), **TABLE_5[row]))
    predictions, supervisions = training_step(model, make_batch())
    teachers = {"fixed": {"main"}, "fixed twice": {"main", "teacher"}, "both": {"teacher"}}.get(row, set())
    adaptive = {"adaptive": {"main"}, "adaptive twice": {"main", "auxiliary"}, "both": {"main"}}.get(row, set())
    for group in predictions.keys() & {"main", "teacher", "auxiliary"}:
        of_group = [each for each in supervisions if each.group == group]
        by_truth = [each for each in of_group if each.losses[0].name == "loss_class"]
        assert sorted(n for each in by_truth for n in each.numbers(3)) == [0, 1, 2]
        taught = [n for each in by_truth if isinstance(each.assigner, OfTeacher) for n in each.numbers(3)]
        assert taught == ([2] if group in teachers else [])
        (by_teacher,) = (each for each in of_group if each.losses[0].name == "loss_distill_class")
        assert isinstance(by_teacher.assigner, AdaptiveMatcher) == (group in adaptive)


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr", "dn_detr", "deformable_detr"])
def test_student_with_the_queries_of_its_teacher(name: str):
    """It keeps them in training, and has them at inference; a second training does not copy them again."""
    teacher = quiet_teacher(name)
    options = {**TABLE_5["fixed"], "losses": ["prediction"]}
    model = switch_on(detector(name), distillation(teacher, **options))
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    sum(losses_of(model, make_batch()).values()).backward()
    optimizer.step()
    expected = teacher.query_source.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.query_source.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.query_source.parameters())
    resumed = switch_on(detector(name), distillation(quiet_teacher(name), **options))
    with torch.no_grad():
        for parameter in model.query_source.parameters():
            parameter.add_(1)
    resumed.load_state_dict(model.state_dict())
    losses_of(resumed, make_batch())
    for one, other in zip(resumed.query_source.parameters(), model.query_source.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "instances" in resumed.eval()([make_input(64, 64)])[0]


def test_teacher_assigns_by_its_own_predictions():
    """Eq. 7 for the main group, in all layers that the teacher has, too."""
    torch.manual_seed(0)
    teacher = make_model("conditional_detr/conditional_detr_digits.py", lambda cfg: cfg.decoder.update(num_layers=2))
    options = {**TABLE_5["fixed"], "constraint": "all"}
    model = switch_on(detector("conditional_detr"), distillation(teacher, **options))
    batch = make_batch()
    _, supervisions = training_step(model, batch)
    (taught,) = (each for each in supervisions if isinstance(each.assigner, OfTeacher))
    assert list(taught.numbers(3)) == [1, 2]
    lesson = model.methods[-1].teacher.teach(model, model.preprocess(batch), [])
    torch.testing.assert_close(taught.assigner.teacher.boxes, lesson.predictions.boxes)
    targets = Targets.from_instances([each["instances"] for each in batch], range(2), torch.device("cpu"))
    found = taught.assigner.assign(None, targets)
    expected = taught.assigner.assigner.assign(lesson.predictions, targets)
    assert torch.equal(found.query, expected.query) and torch.equal(found.truth, expected.truth)


@pytest.mark.parametrize("constraint", ["last", "all"])
@pytest.mark.parametrize("other", ["hybrid_epoch", "hybrid_layer", "quality_aware", "query_routing"])
def test_constraint_holds_for_the_supervision_of_this_step(other: str, constraint: str):
    """The assigners that other methods choose get the teacher's predictions, wherever they are in the list."""
    teacher, batch, found, losses = quiet_teacher(), make_batch(), [], []
    for first in (True, False):
        own = distillation(teacher, **TABLE_5["fixed"], losses=["prediction"], constraint=constraint)
        methods = [own, METHODS[other].make()]
        model = switch_on(detector("conditional_detr"), *(methods if first else methods[::-1]))
        main = [each for each in training_step(model, batch)[1] if each.group == "main"]
        by_truth = [each for each in main if not each.losses[0].name.startswith("loss_distill")]
        taught = [n for each in by_truth if isinstance(each.assigner, OfTeacher) for n in each.numbers(3)]
        assert sorted(taught) == ([2] if constraint == "last" else [0, 1, 2])
        assigners = [getattr(each.assigner, "assigner", each.assigner) for each in by_truth]
        found.append(
            [
                (list(each.numbers(3)), type(assigner), getattr(assigner, "copies", None), each.repeats)
                for each, assigner in zip(by_truth, assigners, strict=True)
            ]
        )
        losses.append(losses_of(model, batch))
    assert found[0] == found[1] and losses[0].keys() == losses[1].keys()
    for key, loss in losses[0].items():
        torch.testing.assert_close(losses[1][key], loss, msg=key)


def test_groups_with_the_same_queries_learn_the_same():
    """Two groups with fixed matching have the same losses if there is no dropout."""
    model = detector("conditional_detr")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    losses = losses_of(switch_on(model, distillation(quiet_teacher(), **TABLE_5["fixed twice"])), make_batch())
    twice = [key for key in losses if key.endswith("_teacher")]
    assert len(twice) == 3 * 8
    for key in twice:
        torch.testing.assert_close(losses[key], losses[key.removesuffix("_teacher")], msg=key, atol=1e-4, rtol=1e-4)


def test_second_set_of_queries_is_trained():
    model = switch_on(detector("dab_detr"), distillation(quiet_teacher("dab_detr"), **TABLE_5["adaptive twice"]))
    losses = losses_of(model, make_batch())
    assert {"loss_class_auxiliary", "loss_distill_class_auxiliary"} <= losses.keys()
    sum(value for key, value in losses.items() if key.endswith("_auxiliary")).backward()
    rows = model.methods[-1].further
    assert rows.sizes.grad.any() and not model.query_source.sizes.grad.any()
    assert not any(key.endswith("_teacher") for key in losses)


@pytest.mark.parametrize("frozen_centres", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_queries_of_other_methods_are_trained(first: bool, frozen_centres: bool):
    """The main queries are not, because they are the teacher's; only the config decides about the others' centres."""
    model = make_model(
        "dab_detr/dab_detr_digits.py", lambda cfg: cfg.query_source.update(freeze_centres=frozen_centres)
    )
    methods = [distillation(quiet_teacher("dab_detr"), **TABLE_5["fixed"]), METHODS["hybrid_branch"].make()]
    switch_on(model, *(methods if first else methods[::-1]))
    assert not any(parameter.requires_grad for parameter in model.query_source.parameters())
    rows = methods[1].further
    assert rows.sizes.requires_grad and rows.centres.requires_grad == (not frozen_centres)


@pytest.mark.parametrize("name", ["deformable_detr_plus_plus", "dino", "pattern_queries"])
def test_queries_that_depend_on_the_image_cannot_be_those_of_the_teacher(name: str):
    model = detector(name)
    method = Distillation("", losses=["prediction"], **TABLE_5["fixed"])
    with pytest.raises(ValueError, match="but those of this detector depend on the image"):
        switch_on(model, method)


def test_other_numbers_of_queries_cannot_be_taken_over():
    """The error says what to set; the parts that are inherited have nothing to do with it."""
    teacher = copy.deepcopy(quiet_teacher())
    teacher.query_source.pos = nn.Embedding(14, 64)
    model = switch_on(detector("conditional_detr"), distillation(teacher, **TABLE_5["fixed"]))
    with pytest.raises(ValueError, match=r"query_source.pos.weight \(\(14, 64\) there, \(10, 64\) here\)") as error:
        losses_of(model, make_batch())
    assert str(error.value).endswith(
        "here). Give model.query_source the teacher's num_queries and widths, or keep the student's queries: "
        'queries="own", without query_source in `inherit`'
    )
