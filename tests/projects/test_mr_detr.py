"""Mr. DETR as a plug-in: what its routes are, few calls, combinations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detrx import model_zoo
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer, MultiScaleTokens, Predictions, QueryGroup, Step
from detrx.projects.h_detr import HybridBranch
from detrx.projects.mr_detr import COMBINATIONS, MrDETR
from tests.modeling.small import make_model
from tests.projects.contract import make_batch, switch_on, training_step

DEFORMABLE, DINO, ALIGN = (f"mr_detr/mr_detr_{name}_digits.py" for name in ("deformable", "dino", "align"))


def predict(model: DetectionTransformer, batch: list[dict]) -> dict[str, Predictions]:
    """Predictions of a training step, by group."""
    return training_step(model, batch)[0]


def with_method(method: MrDETR, name: str = "deformable_detr/deformable_detr_digits.py") -> DetectionTransformer:
    return switch_on(make_model(name), method)


def test_denoising_queries_go_on_every_route():
    predictions = predict(make_model(DINO), make_batch())
    shape = predictions["denoising"].logits.shape
    assert predictions["denoising_instruction"].logits.shape == predictions["denoising_ffn"].logits.shape == shape


def test_denoising_must_come_first():
    cfg = model_zoo.get_config(DINO).model
    cfg.methods = cfg.methods[::-1]
    with pytest.raises(ValueError, match="ContrastiveDenoising must come before MrDETR"):
        instantiate(cfg)


def test_beside_h_detr():
    """Hybrid queries are a group of their own and stay on the main route; every method has its losses."""
    cfg = model_zoo.get_config(DINO).model
    cfg.methods.insert(1, L(HybridBranch)(num_queries=20, copies=2))
    model, batch = instantiate(cfg), make_batch()
    assert set(predict(model, batch)) == {
        *("encoder", "encoder_instruction", "main", "hybrid", "instruction", "ffn"),
        *("denoising", "denoising_instruction", "denoising_ffn"),
    }
    losses = model(batch)
    sum(losses.values()).backward()
    layers = len(model.decoder.layers)
    assert len(losses) == 3 * (2 + 7 * layers)
    assert all(parameter.grad is not None for parameter in model.methods.parameters())


@pytest.mark.parametrize(
    "name", ["conditional_detr/conditional_detr_digits.py", "dn_detr/dn_detr_digits.py", "dab_detr/dab_detr_digits.py"]
)
def test_one_stage_detectors(name: str):
    """Routes start from the main queries: there are no proposals to choose from."""
    model = with_method(MrDETR(), name)
    predictions = predict(model, make_batch())
    assert {"instruction", "ffn"} < set(predictions) and "encoder_instruction" not in predictions


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_combinations_of_own_components(combination: str):
    """Every combination of the paper's study trains; it has the parameters it says, and no others."""
    routes = COMBINATIONS[combination]
    model = with_method(MrDETR(routes=routes))
    losses = model.train()(make_batch())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    own = model.methods[0]
    assert all(parameter.grad is not None for parameter in own.parameters())
    layers = model.decoder.layers
    expected = sum(
        parameter.numel()
        for route in routes
        for part in route.split("+")
        if part != "shared"
        for layer in layers
        for parameter in getattr(layer, part).parameters()
    )
    assert sum(parameter.numel() for parameter in own.parameters()) == expected
    assert len(losses) == 3 * (len(layers) * (1 + len(routes)) + 1)


def test_twelve_combinations():
    assert len(set(COMBINATIONS.values())) == 12


def test_everything_shared_predicts_as_the_main_route():
    predictions = predict(with_method(MrDETR(routes=["shared"])), make_batch())
    torch.testing.assert_close(predictions["shared"].logits, predictions["main"].logits)


def test_routes_share_calls():
    """One call of each shared component of a layer serves all routes."""
    model, batch = make_model(DEFORMABLE), make_batch()
    calls: dict[str, list[int]] = {}
    layer = model.decoder.layers[1]
    for name in ("cross_attn", "ffn", "norm2"):
        getattr(layer, name).register_forward_hook(
            lambda module, args, out, name=name: calls.setdefault(name, []).append(out.shape[1])
        )
    predict(model, batch)
    count = model.query_source.num_queries
    assert calls["cross_attn"] == calls["norm2"] == [3 * count] and calls["ffn"] == [2 * count]


def test_three_routes_cost_far_less_than_three_passes():
    """Multiply-adds of the published decoder on images of 640 x 640; the tokens are projected once for all routes."""
    cfg = model_zoo.get_config("mr_detr/mr_detr_deformable_r50.py").model
    cfg.backbone.pretrained = False
    with torch.device("meta"):
        model = instantiate(cfg)
        memory = model.tokenizer([torch.empty(1, 256, size, size) for size in (80, 40, 20, 10)], None)
        main, predictions = model.query_source(memory)
        step = Step(model, memory, main, predictions, targets=None)
        groups = [main, *(branch.group for branch in model.methods[0].branches(step))]
        together = multiply_adds(model, groups, memory)
        apart = sum(multiply_adds(model, [group], memory) for group in groups)
    assert len(groups) == 3
    assert together < 0.7 * apart


def multiply_adds(model: DetectionTransformer, groups: list[QueryGroup], memory: MultiScaleTokens) -> int:
    """Of the decoder's matrix products."""
    with FlopCounterMode(display=False) as counter:
        model.decoder(groups, memory)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"routes": ["attention"]}, "unknown components"),
        ({"routes": ["ffn+self_attn+ffn"]}, "names a component twice"),
        ({"routes": []}, "at least one and all different"),
        ({"routes": ["ffn", "ffn"]}, "at least one and all different"),
        ({"routes": "ffn"}, "routes must be a list of routes, .* got 'ffn'"),
        ({"num_instruction_tokens": 0}, "num_instruction_tokens must be a whole number, at least 1, got 0"),
        ({"top_k": 2.5}, r"top_k must be a whole number, at least 1, got 2\.5"),
        ({"alpha": 3}, r"alpha must be in \[0, 1\], got 3"),
        ({"threshold": -0.1}, r"threshold must be in \[0, 1\], got -0\.1"),
        ({"weight": -1}, "weight must not be negative, got -1"),
        ({"own_proposals": ["ffm"]}, r"own_proposals has \['ffm'\], but the routes are \['instruction', 'ffn'\]"),
    ],
)
def test_errors(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        with_method(MrDETR(**options))
