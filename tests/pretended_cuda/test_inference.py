"""From images to detections on the host: one wait for the model, and one for the detections of all images."""

import numpy as np
import pytest
import torch

from detrx.coco.results import instances_on_host
from detrx.d2 import USE_DETECTRON2
from detrx.d2.structures import Boxes, Instances
from detrx.data import DetectionMapper
from detrx.layers import to_device, to_host
from detrx.predictor import Predictor
from tests.projects import contract

from .harness import on_pretended_cuda, waits


@on_pretended_cuda
def test_predictor():
    model = contract.detector("deformable_detr_plus_plus")
    images = [np.random.default_rng(0).integers(256, size=(h, 64, 3), dtype=np.uint8) for h in (64, 96, 64)]
    mapper = DetectionMapper(is_train=False, augmentations=None)
    expected = Predictor(model, mapper, score_threshold=0.0, batch_size=3)(images)
    predictor = Predictor(model.to("cuda"), mapper, ["zero", "one"], score_threshold=0.0, batch_size=3)
    with waits() as found:
        detections = predictor(images)
        for image, each in zip(images, detections, strict=True):
            predictor.to_dict(each)
            predictor.draw(image, each)
    assert found.count == 2, found
    for each, right in zip(detections, expected, strict=True):
        assert each.scores.device.type == "cpu" and each.image_size == right.image_size
        torch.testing.assert_close(each.scores, right.scores, rtol=1e-3, atol=1e-5)


def instances(count: int, device: str) -> Instances:
    return Instances(
        (20, 30),
        pred_boxes=Boxes(torch.rand(count, 4, device=device)),
        scores=torch.rand(count, device=device),
        pred_classes=torch.arange(count, device=device),
        odd=torch.rand(count, device=device) > 0.5,
        names=["x"] * count,
    )


@on_pretended_cuda
def test_instances_of_a_batch_come_to_the_host_in_one_copy():
    batch = [instances(count, "cuda") for count in (3, 0, 1)]
    with waits() as found:
        on_host = instances_on_host(batch)
    assert found.count == 1, found
    for each, source in zip(on_host, batch, strict=True):
        assert each.image_size == (20, 30) and isinstance(each.pred_boxes, Boxes) and each.names == source.names
        assert torch.equal(each.pred_boxes.tensor, source.pred_boxes.tensor.cpu())
        for name in ("scores", "pred_classes", "odd"):
            assert each.get(name).dtype == source.get(name).dtype
            assert torch.equal(each.get(name), source.get(name).cpu()), name
        assert each.scores.untyped_storage().nbytes() == 4 * len(each), "an image must not keep those of the others"


@pytest.mark.skipif(USE_DETECTRON2, reason="Detectron2's own Instances wait once per field")
@on_pretended_cuda
def test_a_mask_takes_instances_with_one_wait():
    found = instances(5, "cuda")
    found.remove("names")
    mask = found.pred_classes % 2 == 0
    with waits() as counted:
        taken = found[mask]
    assert counted.count == 1, counted
    assert taken.pred_classes.tolist() == [0, 2, 4]
    with pytest.raises(IndexError, match=r"mask of shape \(4,\) does not fit 5 instances"):
        found[mask[:4]]


@on_pretended_cuda
def test_copies_between_host_and_device():
    tensors = [torch.arange(3), torch.rand(2, 5), torch.tensor([True]), torch.rand(()), torch.empty(0, 4)]
    with waits() as found:
        there = [to_device(each, torch.device("cuda:0")) for each in tensors]
    assert found.count == 0, found
    assert to_device(there[0], torch.device("cuda:0")) is there[0]
    with waits() as found:
        back = to_host([*there, tensors[1]])
    assert found.count == 1, found
    assert back[-1] is tensors[1]
    for each, right in zip(back, tensors, strict=False):
        assert each.dtype == right.dtype and torch.equal(each, right)
