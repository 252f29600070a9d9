"""The host waits for the device as often as the budget says, in each digits config: the real ones, in bfloat16."""

import pytest
import torch

from detrx.d2.structures import Instances
from detrx.ops import has_kernel

from .budget import BUDGET, build, digits_configs, inference_waits, make_batch, training_waits
from .harness import Waits, on_pretended_cuda

pytestmark = pytest.mark.skipif(
    not has_kernel("query_route", "cpu"), reason="no compiled kernels, whose PyTorch code waits more often"
)


def compare(found: Waits, allowed: int, what: str) -> None:
    assert found.count <= allowed, f"{what} may wait {allowed} times, but {found}"
    assert found.count >= allowed, f"{what} may wait {allowed} times, which is too much now: {found}"


@pytest.mark.parametrize("name", digits_configs())
@on_pretended_cuda
def test_waits_of_a_step(name: str):
    assert name in BUDGET, f"{name} needs a row in tests/pretended_cuda/budget.py"
    training, inference = BUDGET[name]
    model, batch = build(name), make_batch(3, 1)

    found, losses = training_waits(model, batch)
    compare(found, training, "a training step")
    for loss_name, loss in losses.items():
        assert loss.device.type == "cuda" and loss.dtype == torch.float32 and loss.isfinite(), loss_name
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.device == parameter.device, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name

    found, outputs = inference_waits(model, batch)
    compare(found, inference, "an inference")
    for output in outputs:
        check_detections(output["instances"])


def check_detections(found: Instances) -> None:
    assert found.image_size == (256, 200)
    boxes = found.pred_boxes.tensor
    assert len(found) > 0 and boxes.dtype == found.scores.dtype == torch.float32
    assert {each.device.type for each in (boxes, found.scores, found.pred_classes, found.pred_queries)} == {"cuda"}
    assert found.pred_classes.dtype == found.pred_queries.dtype == torch.int64


def test_no_row_is_left_over():
    assert set(BUDGET) <= set(digits_configs())
