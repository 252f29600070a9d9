"""What training asks of every detector: mixed precision, activation checkpointing, EMA, torch.compile."""

import copy

import pytest
import torch
from torch import nn

from detrx.engine import ModelEMA
from detrx.model_zoo import config_root
from tests.modeling.small import make_input, make_model, with_boxes

DETECTORS = sorted(path.relative_to(config_root()).as_posix() for path in config_root().glob("*/*_digits.py"))


@pytest.fixture(params=DETECTORS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(request.param)


def make_batch() -> list[dict]:
    return [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]


def losses_of(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of denoising
    return model.train()(batch)


def test_there_are_configs():
    assert len(DETECTORS) >= 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(model: nn.Module, dtype: torch.dtype):
    batch = make_batch()
    with torch.autocast("cpu", dtype):
        losses = losses_of(model, batch)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in trained)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = model.eval()(batch)[0]["instances"]
    assert found.scores.dtype == torch.float32 and torch.isfinite(found.pred_boxes.tensor).all()


def test_activation_checkpointing_changes_nothing(model: nn.Module):
    batch = make_batch()
    recomputing = copy.deepcopy(model)
    recomputing.encoder.activation_checkpointing = recomputing.decoder.activation_checkpointing = True
    recomputing.backbone.checkpoint_activations()
    saved = {}
    for each in (model, recomputing):
        saved[each] = 0

        def pack(tensor: torch.Tensor, each=each) -> torch.Tensor:
            saved[each] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = losses_of(each, batch)
        sum(losses.values()).backward()
    assert saved[recomputing] < 0.8 * saved[model]
    for (name, expected), found in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_ema_follows_and_detects(model: nn.Module):
    ema = ModelEMA(model, decay=0.5)
    before = {name: value.clone() for name, value in ema.model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    ema.update(model)
    for name, parameter in ema.model.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.01)
    assert "instances" in ema.model.eval()([make_input(64, 64)])[0]


def test_compiled_inference_is_one_graph(model: nn.Module):
    model.eval()
    images = torch.randn(2, 3, 64, 96)
    compiled = torch.compile(model.predict, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, found = model.predict(images, None)["main"], compiled(images, None)["main"]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
