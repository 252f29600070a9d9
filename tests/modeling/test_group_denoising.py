"""Denoising of DN-DETR: the noise, what the decoder gets, and what it is taught."""

import pytest
import torch

from detrx.d2.config import LazyCall as L
from detrx.modeling import DetectionTransformer, GroupDenoising, Step, Targets
from detrx.modeling.methods import Branch
from tests.modeling.small import make_input, make_model, with_boxes

DN = "dn_detr/dn_detr_digits.py"


def make_noise(labels: torch.Tensor, boxes: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    method = GroupDenoising(**options)
    method.num_labels = 11
    return method.noise(labels, boxes)


def make_branch(model: DetectionTransformer, counts: tuple[int, ...]) -> tuple[Branch, Targets]:
    batch = [with_boxes(make_input(64, 64), count) for count in counts]
    targets = Targets.from_instances([each["instances"] for each in batch], range(len(batch)), torch.device("cpu"))
    memory = model.encode(model.preprocess(batch))
    main, predictions = model.query_source(memory)
    (branch,) = model.methods[0].branches(Step(model, memory, main, predictions, targets))
    return branch, targets


def test_noise_of_labels_may_draw_no_object():
    labels = torch.randint(10, (300, 1, 40))
    noised, _ = make_noise(labels, torch.rand(300, 1, 40, 4), label_noise=0.2)
    assert noised.unique().tolist() == list(range(11))
    # One in eleven of the new labels is the old one.
    assert (noised != labels).float().mean().item() == pytest.approx(0.2 * 10 / 11, abs=0.02)


def test_noise_of_boxes_is_relative_to_their_size():
    boxes = torch.tensor([0.5, 0.4, 0.2, 0.1]).expand(300, 1, 40, 4)
    _, noised = make_noise(torch.zeros(300, 1, 40, dtype=torch.long), boxes, box_noise=0.4)
    shift = (noised - boxes) / torch.tensor([0.1, 0.05, 0.2, 0.1])
    assert 0.39 < shift.max() <= 0.4 + 1e-5 and -0.4 - 1e-5 <= shift.min() < -0.39
    assert shift.abs().mean().item() == pytest.approx(0.2, abs=0.01)
    _, noised = make_noise(torch.zeros(9, 1, 9, dtype=torch.long), torch.full((9, 1, 9, 4), 0.97), box_noise=0.4)
    assert noised.max() == 1


def test_group_without_noise_is_the_ground_truth():
    model = make_model(DN)
    model.methods[0].label_noise = model.methods[0].box_noise = 0.0
    branch, targets = make_branch(model, (1, 3))
    group, embedding = branch.group, model.query_source.label_embedding
    assert group.content.shape[:2] == (2, 5 * 3) and group.sees == ("main",) and group.pos is None
    for block in range(5):
        torch.testing.assert_close(group.reference[1, 3 * block : 3 * block + 3], targets.boxes[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(group.content[1, 3 * block : 3 * block + 3], embedding(targets.labels[1]))
    assert not group.content[0, 1:3].any()
    same_group = torch.arange(15)[:, None] // 3 == torch.arange(15) // 3
    assert torch.equal(group.blocked, ~same_group)


def test_losses_are_those_of_all_groups_on_average():
    model = make_model(DN).train()
    branch, _ = make_branch(model, (1, 3))
    (supervision,) = branch.supervisions
    assert supervision.weight == 1 / 5
    assert {loss.name: loss.weight for loss in supervision.losses} == {"loss_class": 1, "loss_bbox": 5, "loss_giou": 2}
    losses = model([with_boxes(make_input(64, 64), 2)])
    assert {"loss_class_dn", "loss_class_dn_0", "loss_giou_dn_1"} <= set(losses) and "loss_class_0_dn" not in losses


def test_losses_without_boxes():
    losses = make_model(DN).train()([with_boxes(make_input(64, 64), 0)])
    assert {value.item() for name, value in losses.items() if "_dn" in name} == {0.0}


def test_query_source_without_label_embedding():
    """The method has one of its own, with the indicator, and inference none."""

    def change(cfg) -> None:
        cfg.methods = [L(GroupDenoising)(num_groups=2, label_noise=0.0)]

    model = make_model("deformable_detr/deformable_detr_digits.py", change)
    branch, targets = make_branch(model, (1, 3))
    embedding = model.methods[0].label_embedding
    assert embedding.embed.weight.shape == (11, 63) and model.methods[0].num_labels == 11
    torch.testing.assert_close(branch.group.content[1, :3], embedding(targets.labels[1]))
    assert (branch.group.content[1, :, -1] == 1).all() and branch.group.pos.shape == branch.group.content.shape
    losses = model.train()([with_boxes(make_input(64, 64), 2)])
    sum(losses.values()).backward()
    assert embedding.embed.weight.grad.any()


@pytest.mark.parametrize("name, value", [("num_groups", 0), ("label_noise", 1.5), ("box_noise", -1.0)])
def test_bad_settings(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} .*must be .*{value}"):
        GroupDenoising(**{name: value})
