"""What training asks of every method: gradients, images without boxes, mixed precision, recomputation, EMA, compile."""

import copy

import pytest
import torch

from detrx.engine import ModelEMA
from tests.modeling.small import make_input
from tests.projects.contract import ONCE, PAIRS, losses_of, make_batch, with_and_without

LAST_ITERATION = 9


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_every_parameter_gets_a_gradient_in_every_step(method: str, name: str):
    """Whatever boxes there are: DistributedDataParallel waits for the gradient of every parameter."""
    model, _ = with_and_without(method, name)
    names = set()
    for iteration, counts in ((0, (3, 1)), (LAST_ITERATION, (0, 2)), (0, (0, 0))):
        model.zero_grad()
        losses = losses_of(model, make_batch(*counts), iteration)
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        trained = [(key, p.grad) for key, p in model.named_parameters() if p.requires_grad]
        assert not [key for key, grad in trained if grad is None], f"{counts} boxes"
        assert not [key for key, grad in trained if not grad.isfinite().all()], f"{counts} boxes"
        names.add(frozenset(losses))
    assert len(names) == 1, "losses come and go with the boxes: processes could not average them"


@pytest.mark.parametrize(("method", "name"), ONCE)
def test_mixed_precision(method: str, name: str):
    model, _ = with_and_without(method, name)
    batch = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(("method", "name"), ONCE)
def test_activation_checkpointing_changes_nothing(method: str, name: str):
    model, _ = with_and_without(method, name)
    recomputing, batch = copy.deepcopy(model), make_batch()
    recomputing.encoder.activation_checkpointing = recomputing.decoder.activation_checkpointing = True
    for each in (model, recomputing):
        sum(losses_of(each, batch).values()).backward()
    for (key, expected), found in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("method", "name"), ONCE)
def test_average_of_the_weights_trains_and_detects(method: str, name: str):
    """The copy that EMA keeps has everything of its own, the method and what it refers to."""
    model, _ = with_and_without(method, name)
    ema, batch = ModelEMA(model, decay=0.5), make_batch()
    expected = losses_of(ema.model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    found = losses_of(ema.model, batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "instances" in ema.model.eval()([make_input(64, 64)])[0]


@torch.no_grad()
@pytest.mark.parametrize(("method", "name"), ONCE[:1] + [pair for pair in ONCE if pair[0] in ("mr_detr",)])
def test_compiled_inference_is_one_graph(method: str, name: str):
    model = with_and_without(method, name)[0].eval()
    images = torch.randn(2, 3, 64, 96)
    compiled = torch.compile(model.predict, fullgraph=True, backend="aot_eager")
    expected, found = model.predict(images, None)["main"], compiled(images, None)["main"]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
