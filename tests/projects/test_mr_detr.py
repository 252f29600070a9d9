"""Mr. DETR as a plug-in: nothing of it at inference, routes that leave the main one alone, few calls, combinations."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detrx import model_zoo
from detrx.analysis.flops import count_flops
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer, MultiScaleTokens, QueryGroup, Step, Targets
from detrx.projects.h_detr import HybridBranch
from detrx.projects.mr_detr import COMBINATIONS, MrDETR
from tests.modeling.small import make_input, make_model, with_boxes

DEFORMABLE, DINO, ALIGN = (f"mr_detr/mr_detr_{name}_digits.py" for name in ("deformable", "dino", "align"))


def make_batch() -> list[dict]:
    return [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]


def predict(model: DetectionTransformer, batch: list[dict]) -> dict:
    """Predictions of a training step, by group."""
    torch.manual_seed(0)  # of denoising
    targets = Targets.from_instances([each["instances"] for each in batch], (0, 1), model.device)
    return model.train().train_step(model.encode(model.preprocess(batch)), targets)[0]


def with_method(method: MrDETR, name: str = "deformable_detr/deformable_detr_digits.py") -> DetectionTransformer:
    model = make_model(name)
    model.methods.append(method)
    method.attach(model)
    return model


@pytest.mark.parametrize("name", [DEFORMABLE, DINO, ALIGN])
def test_inference_contract(name: str):
    """Outputs, graph and FLOPs of the plain detector, and no parameter of the method touched."""
    model = make_model(name).eval()
    plain = copy.deepcopy(model)
    plain.methods = nn.ModuleList()
    with torch.no_grad():
        for parameter in model.methods.parameters():
            parameter.fill_(float("nan"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = model.predict(images, None), plain.predict(images, None)
    assert found.keys() == expected.keys()
    for group in found:
        assert torch.equal(found[group].logits, expected[group].logits)
        assert torch.equal(found[group].boxes, expected[group].boxes)
    assert count_flops(model, images).total() == count_flops(plain, images).total()
    graphs = []
    for each in (model, plain):
        each.forward = lambda x, each=each: each.predict(x, None)["main"].logits
        program = torch.export.export(each, (images,))
        graphs.append([str(node.target) for node in program.graph.nodes if node.op != "placeholder"])
        used = {
            s.target for s in program.graph_signature.input_specs if s.target and s.arg.name in used_inputs(program)
        }
        assert not [name for name in used if name.startswith("methods")]
    assert graphs[0] == graphs[1]


def used_inputs(program: torch.export.ExportedProgram) -> set[str]:
    return {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}


@pytest.mark.parametrize("name", [DEFORMABLE, DINO, ALIGN])
def test_main_route_does_not_notice_the_others(name: str):
    model, batch = make_model(name), make_batch()
    before = predict(model, batch)
    mr_detr = model.methods[-1]
    assert set(mr_detr.route_names) < set(before)
    with torch.no_grad():
        for parameter in mr_detr.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = predict(model, batch)
    for group in before:
        auxiliary = any(route in group for route in mr_detr.route_names)
        assert torch.equal(before[group].logits, after[group].logits) == (not auxiliary), group
    main = sum(value.boxes.sum() + value.logits.sum() for key, value in after.items() if key in ("main", "denoising"))
    main.backward()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in mr_detr.parameters())


@pytest.mark.parametrize("name", [DEFORMABLE, DINO, ALIGN])
def test_every_parameter_learns(name: str):
    model = make_model(name)
    sum(model.train()(make_batch()).values()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_denoising_queries_go_on_every_route():
    predictions = predict(make_model(DINO), make_batch())
    shape = predictions["denoising"].logits.shape
    assert predictions["denoising_instruction"].logits.shape == predictions["denoising_ffn"].logits.shape == shape


def test_denoising_must_come_first():
    cfg = model_zoo.get_config(DINO).model
    cfg.methods = cfg.methods[::-1]
    with pytest.raises(ValueError, match="ContrastiveDenoising must stand before MrDETR"):
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
    sum(model(make_batch()).values()).backward()
    assert all(parameter.grad is not None for parameter in model.methods[-1].parameters())


def test_softmax_is_refused():
    with pytest.raises(ValueError, match="has a softmax"):
        with_method(MrDETR(), "detr/detr_digits.py")


def test_activation_checkpointing_changes_nothing():
    model, batch = make_model(DINO), make_batch()
    expected = predict(model, batch)
    model.decoder.activation_checkpointing = True
    for group, found in predict(model, batch).items():
        torch.testing.assert_close(found.logits, expected[group].logits)


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
        ({"routes": []}, "at least one and all different"),
        ({"routes": ["ffn", "ffn"]}, "at least one and all different"),
        ({"num_instruction_tokens": 0}, "at least 1, got 0"),
    ],
)
def test_errors(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        with_method(MrDETR(**options))
