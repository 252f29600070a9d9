"""Models that were converted to another dtype as a whole."""

import copy

import pytest
import torch

from detrx import model_zoo
from detrx.export import DetectionGraph
from tests.modeling.small import all_detections, make_input, make_model, with_boxes
from tests.projects.contract import ONCE, losses_of, with_and_without

DIGITS = [name for name in model_zoo.list_models("*_digits") if "student" not in name and "teacher" not in name]
DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", DIGITS)
def test_inference(config: str, dtype: torch.dtype):
    model, images = make_model(config).eval(), [make_input(64, 96), make_input(7, 50)]
    expected, found = all_detections(model, images), all_detections(copy.deepcopy(model).to(dtype), images)
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    assert found.pred_boxes.tensor.isfinite().all()
    if dtype == torch.float64:
        assert torch.equal(found.pred_queries, expected.pred_queries)
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2, rtol=1e-4)
    else:
        assert (found.scores.sort().values[-50:] - expected.scores.sort().values[-50:]).abs().max() < 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("method", "detector"), ONCE)
def test_training(method: str, detector: str, dtype: torch.dtype):
    model, _ = with_and_without(method, detector)
    batch = [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]
    expected = losses_of(copy.deepcopy(model), batch)
    found = losses_of(model.to(dtype), batch)
    assert found.keys() == expected.keys() and all(loss.isfinite() for loss in found.values())
    sum(found.values()).backward()
    assert all(p.grad.dtype == dtype for p in model.parameters() if p.requires_grad and p.grad is not None)
    if dtype == torch.float64:
        for name, loss in expected.items():
            torch.testing.assert_close(
                found[name].float(), loss, atol=1e-3, rtol=1e-3, msg=f"{name}: {found[name]}, {loss}"
            )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64], ids=str)
def test_images_of_any_dtype(dtype: torch.dtype):
    model, image = make_model().eval(), make_input(64, 64)
    expected = model([image])[0]["instances"]
    found = model([{"image": image["image"].to(dtype)}])[0]["instances"]
    torch.testing.assert_close(found.scores, expected.scores)
    boxes, *_ = DetectionGraph(model)(image["image"].to(dtype)[None])
    assert boxes.dtype == torch.float32
