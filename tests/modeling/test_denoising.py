"""Contrastive denoising: the noise, the layout of the queries, and that it leaves the detector alone."""

import copy

import pytest
import torch

from detrx import model_zoo
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.d2.structures import Boxes, Instances
from detrx.layers import cxcywh_to_xyxy
from detrx.modeling import ContrastiveDenoising, DetectionTransformer, Step, Targets
from detrx.modeling.denoising import Slots
from tests.modeling.small import make_input, make_model, with_boxes

DINO = "dino/dino_digits.py"


def make_noise(labels: torch.Tensor, boxes: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    method = ContrastiveDenoising(**options)
    method.label_embed = torch.nn.Embedding(10, 4)
    return method.noise(labels, boxes)


def make_targets(*counts: int) -> Targets:
    instances = [
        Instances((10, 10), gt_boxes=Boxes(torch.rand(n, 2).repeat(1, 2)), gt_classes=torch.arange(n)) for n in counts
    ]
    return Targets.from_instances(instances, range(len(counts)), torch.device("cpu"))


def training_step(model: DetectionTransformer, batch: list[dict]) -> dict[str, torch.Tensor]:
    targets = Targets.from_instances([each["instances"] for each in batch], range(len(batch)), torch.device("cpu"))
    return model.train_step(model.preprocess(batch), targets)[0]


def test_noise_of_labels():
    labels = torch.randint(10, (200, 2, 40))
    for label_noise in (0.5, 1.0):
        noised, _ = make_noise(labels, torch.rand(200, 2, 40, 4), label_noise=label_noise)
        # One in ten of the new labels is the old one.
        assert (noised != labels).float().mean().item() == pytest.approx(0.5 * label_noise * 0.9, abs=0.015)
        assert noised[noised != labels].unique().tolist() == list(range(10))


def test_noise_of_boxes():
    boxes = torch.tensor([0.5, 0.4, 0.2, 0.1]).expand(200, 2, 40, 4)
    half = torch.tensor([0.1, 0.05, 0.1, 0.05])
    for box_noise in (1.0, 0.4):
        _, noised = make_noise(torch.zeros(200, 2, 40, dtype=torch.long), boxes, box_noise=box_noise)
        shift = (cxcywh_to_xyxy(noised) - cxcywh_to_xyxy(boxes)) / half / box_noise
        kept, rejected = shift.abs().unbind(1)
        assert kept.max() < 1 + 1e-4 and kept.min() < 0.01
        assert rejected.min() > 1 - 1e-4 and 1.99 < rejected.max() < 2 + 1e-4
        assert kept.mean().item() == pytest.approx(0.5, abs=0.02)
        assert rejected.mean().item() == pytest.approx(1.5, abs=0.02)
        assert (shift > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_noised_boxes_stay_in_the_image():
    boxes = torch.tensor([0.1, 0.9, 0.2, 0.2]).expand(50, 2, 10, 4)
    _, noised = make_noise(torch.zeros(50, 2, 10, dtype=torch.long), boxes)
    corners = cxcywh_to_xyxy(noised)
    assert corners.min() > -1e-6 and corners.max() < 1 + 1e-6


def test_no_noise():
    labels, boxes = torch.randint(10, (2, 2, 5)), torch.rand(2, 2, 5, 4)
    noised_labels, noised_boxes = make_noise(labels, boxes, label_noise=0.0, box_noise=0.0)
    assert torch.equal(noised_labels, labels) and torch.equal(noised_boxes, boxes)


def test_number_of_groups():
    method = ContrastiveDenoising(num_queries=100)
    assert [method.num_groups(most) for most in (1, 7, 51, 150)] == [100, 14, 1, 1]


def test_places_of_the_queries():
    slots = Slots.arrange(make_targets(2, 0, 3), num_groups=2, copies=2)
    assert slots.shape == (3, 12)
    places = [
        (image, block * 3 + box, box) for block in range(4) for image, count in ((0, 2), (2, 3)) for box in range(count)
    ]
    assert list(zip(slots.image.tolist(), slots.slot.tolist(), slots.truth.tolist(), strict=True)) == places
    for i in range(12):
        assert slots.blocked[i].tolist() == [(i < 6) != (j < 6) for j in range(12)]
    positive = slots.pairs(0)
    found = set(zip(positive.image.tolist(), positive.query.tolist(), positive.truth.tolist(), strict=True))
    assert found == {place for place in places if place[1] in (0, 1, 2, 6, 7, 8)}
    filled = slots.fill(torch.ones(20, 1))[..., 0]
    assert filled.sum() == 20 and not filled[1].any() and filled[0].tolist() == [1, 1, 0] * 4


def test_group_given_to_the_decoder():
    model = make_model(DINO)
    batch = [with_boxes(make_input(64, 64), count) for count in (1, 3)]
    targets = Targets.from_instances([each["instances"] for each in batch], range(2), torch.device("cpu"))
    memory = model.encode(model.preprocess(batch))
    main, predictions = model.query_source(memory)
    (branch,) = model.methods[0].branches(Step(model, memory, main, predictions, targets))
    group, groups = branch.group, 20 // 3
    assert group.content.shape[:2] == (2, groups * 2 * 3) and group.sees == ("main",)
    unused = torch.arange(groups * 2 * 3) % 3 > 0
    assert not group.content[0, unused].any() and group.content[1].any(-1).all()
    assert torch.equal(group.reference[0, unused], torch.full((int(unused.sum()), 4), 0.5))
    assert [s.weight for s in branch.supervisions] == [1 / groups]


@torch.no_grad()
@pytest.mark.parametrize("embed_position", [False, True])
def test_main_queries_do_not_notice_it(embed_position: bool):
    cfg = "deformable_detr/deformable_detr_digits.py" if embed_position else DINO
    model = make_model(cfg).train()
    if embed_position:
        method = ContrastiveDenoising(num_queries=20)
        method.attach(model)
        model.methods.append(method)
    batch = [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]
    noised = training_step(model, batch)
    plain = copy.deepcopy(model)
    plain.methods = torch.nn.ModuleList()
    without = training_step(plain, batch)
    assert noised.keys() - without.keys() == {"denoising"}
    torch.testing.assert_close(noised["main"].logits, without["main"].logits)
    torch.testing.assert_close(noised["main"].boxes, without["main"].boxes)


@torch.no_grad()
def test_inference_uses_nothing_of_it():
    model, image = make_model(DINO).eval(), make_input(64, 96)
    before = model([image])[0]["instances"]
    for parameter in model.methods.parameters():
        parameter.fill_(float("nan"))
    after = model([image])[0]["instances"]
    assert torch.equal(before.scores, after.scores) and torch.equal(before.pred_boxes.tensor, after.pred_boxes.tensor)


def test_losses_without_boxes():
    model = make_model(DINO).train()
    losses = model([with_boxes(make_input(64, 96), 0), with_boxes(make_input(64, 64), 0)])
    denoising = {name: value.item() for name, value in losses.items() if "_dn" in name}
    assert len(denoising) == 9 and set(denoising.values()) == {0.0}


def test_detectors_without_reference_boxes():
    cfg = model_zoo.get_config("deformable_detr/deformable_detr_r50.py").model
    cfg.backbone = None
    cfg.methods = [L(ContrastiveDenoising)()]
    with pytest.raises(ValueError, match=r"ContrastiveDenoising needs .* reference boxes .* LearnedQueries"):
        instantiate(cfg)


@pytest.mark.parametrize("name, value", [("num_queries", 0), ("label_noise", 3.0), ("box_noise", -1.0)])
def test_bad_settings(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} must .*got {value}"):
        ContrastiveDenoising(**{name: value})
