"""Activation checkpointing: what is computed again draws the random numbers of the first time, on the device, too."""

from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from detrx.d2.utils import EventStorage
from detrx.layers import Attention, is_recomputing, run_layer
from detrx.modeling import DetectionTransformer, Queries
from tests.modeling.small import make_model
from tests.projects import contract

from . import budget
from .harness import on_pretended_cuda


def drop_paths(cfg: DictConfig) -> None:
    cfg.backbone.model_args.drop_path_rate = 0.5


MODELS: dict[str, Callable[[], nn.Module]] = {
    "detr": lambda: contract.detector("detr"),
    "deformable_detr": lambda: contract.detector("deformable_detr_plus_plus"),
    "query_routing": lambda: contract.with_and_without("query_routing", "dab_detr")[0],
    "mixtures": lambda: budget.build("mr_detr/mr_detr_pp_deformable_digits.py"),
    "drop_paths": lambda: make_model(change=drop_paths),
}


def train(model: DetectionTransformer, batch: list[dict]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradients of a step, and the random state of the device behind it."""
    torch.manual_seed(0)
    model.zero_grad()
    with EventStorage(0):
        sum(model(batch).values()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None], torch.cuda.get_rng_state()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("detr", "encoder"),
        ("detr", "decoder"),
        ("deformable_detr", "encoder"),
        ("deformable_detr", "decoder"),
        ("query_routing", "decoder"),
        ("mixtures", "encoder"),
        ("mixtures", "decoder"),
        ("drop_paths", "backbone"),
    ],
)
@on_pretended_cuda
def test_gradients_with_dropout_are_those_without_checkpointing(name: str, part: str):
    model = MODELS[name]().to("cuda").train()
    if name != "drop_paths":
        for module in getattr(model, part).modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
            elif isinstance(module, Attention):
                module.dropout = 0.3
    batch = budget.make_batch(3, 1)
    expected, state = train(model, batch)
    if part == "backbone":
        model.backbone.checkpoint_activations()
    else:
        getattr(model, part).activation_checkpointing = True
    found, state_behind = train(model, batch)
    assert len(found) == len(expected)
    for grad, right in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-5, atol=1e-7)
    assert torch.equal(state_behind, state)


@on_pretended_cuda
def test_a_layer_that_gets_its_tensors_in_a_dataclass():
    """As decoder layers do; `torch.utils.checkpoint` does not look into it for the device."""

    class Layer(nn.Module):
        def forward(self, queries, scale):
            seen.append((is_recomputing(), torch.rand(2, device="cuda").tolist()))
            return queries.content.sigmoid() * scale

    seen: list = []
    queries = Queries(torch.ones(1, 2, 4, device="cuda", requires_grad=True), None, None)
    run_layer(Layer(), queries, 2.0, recompute=True).sum().backward()
    (first, numbers), (second, numbers_again) = seen
    assert (first, second) == (False, True) and numbers == numbers_again


def test_a_layer_without_tensors():
    with pytest.raises(TypeError, match=r"needs a tensor in its inputs, got \['int', 'str'\]"):
        run_layer(nn.Module(), 1, "x", recompute=True)
