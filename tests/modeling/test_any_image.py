"""Images of every shape, alone and in a batch, at inference and in training."""

import random

import pytest
import torch

from detrx import model_zoo
from detrx.d2.structures import Instances
from detrx.errors import UserError
from detrx.modeling import DetectionTransformer
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_input, make_model, with_boxes
from tests.projects.contract import PAIRS, losses_of, switch_on, with_and_without

DIGITS = [name for name in model_zoo.list_models("*_digits") if "student" not in name and "teacher" not in name]
SHAPES = [(1, 1), (1, 40), (7, 300), (33, 31), (64, 64), (65, 129), (130, 2)]


def check_batches(model: DetectionTransformer, shapes: list[tuple[int, int]], batches: list[list[int]]) -> None:
    """The detections of each image in the batches, given as indices, are those of the image alone."""
    model.postprocess.num_detections = 10**6
    images = [make_input(*shape) for shape in shapes]
    alone = [model([image])[0]["instances"] for image in images]
    for batch in batches:
        for index, each in zip(batch, model([images[index] for index in batch]), strict=True):
            assert_same_detections(each["instances"], alone[index], shapes[index])


def assert_same_detections(found: Instances, expected: Instances, size: tuple[int, int]) -> None:
    """Equal scores may be in any order: every detection has a partner of its class in the other list."""
    assert len(found) == len(expected) > 0
    scale = torch.tensor([size[1], size[0]] * 2)
    apart = ((found.pred_boxes.tensor / scale)[:, None] - expected.pred_boxes.tensor / scale).abs().amax(-1)
    apart = torch.maximum(apart, (found.scores[:, None] - expected.scores).abs())
    apart = apart.masked_fill(found.pred_classes[:, None] != expected.pred_classes, float("inf"))
    assert apart.amin(1).max() < 1e-4 and apart.amin(0).max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("config", DIGITS)
def test_an_image_gets_its_detections_in_any_batch(config: str):
    order = list(range(len(SHAPES)))
    random.Random(0).shuffle(order)
    check_batches(make_model(config).eval(), SHAPES, [order, order[:2], order[2:4], order[4:], [0, 4], [0, 0, 1]])


@torch.no_grad()
@pytest.mark.parametrize("regroup", ["scatter", "concat"])
@pytest.mark.parametrize("ffn", ["processed", "all"])
def test_routers_pass_no_empty_rows(regroup: str, ffn: str):
    model = make_model("deformable_detr/deformable_detr_digits.py").eval()
    model = switch_on(model, QueryRouting(router=FixedRouter(0.5), regroup=regroup, ffn=ffn)).eval()
    check_batches(model, [(1, 1), (7, 20), (128, 128)], [[0, 1, 2], [2, 0], [1, 2]])


TRAINED = [
    (method, detector)
    for method, detector in PAIRS
    if detector in ("dino", "deformable_detr_two_stage", "pattern_queries", "deformable_detr", "dab_detr")
]


@pytest.mark.parametrize("shapes", [[(1, 1), (1, 1)], [(1, 1), (7, 90)], [(40, 33)]], ids=str)
@pytest.mark.parametrize(("method", "detector"), TRAINED)
def test_training_with_fewer_tokens_than_queries(method: str, detector: str, shapes: list[tuple[int, int]]):
    """More boxes than queries, too."""
    model, _ = with_and_without(method, detector)
    batch = [with_boxes(make_input(*shape), 13 - 12 * index) for index, shape in enumerate(shapes)]
    losses = losses_of(model, batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.isfinite().all() for grad in trained.values())


@pytest.mark.parametrize("shape", [(24, 24), (1, 1)])
def test_images_too_small_for_batch_norm_are_named(shape: tuple[int, int]):
    config = "deformable_detr/deformable_detr_digits.py"
    image = with_boxes(make_input(*shape, image_id="tiny"), 1)
    message = rf"image ids 'tiny' \({shape[0]} x {shape[1]}\).*frozen_batch_norm=True"
    with pytest.raises(UserError, match=message):
        make_model(config).train()([image])
    losses = make_model(config, lambda cfg: cfg.backbone.update(frozen_batch_norm=True)).train()([image])
    assert all(loss.isfinite() for loss in losses.values())
    assert make_model(config).train()([image, image])
