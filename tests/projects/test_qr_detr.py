"""Query routing in detectors: open, shut and in between, batches, what teaches the routers, other methods, the tool."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detrx.analysis.flops import count_flops
from detrx.cli import analyze_queries as tool
from detrx.d2.config import LazyConfig
from detrx.d2.utils import EventStorage
from detrx.modeling import ContrastiveDenoising, DetectionTransformer, Method, Predictions, Supervision
from detrx.projects.h_detr import HybridBranch
from detrx.projects.mr_detr import MrDETR
from detrx.projects.qr_detr import FixedRouter, QueryRouting, force_routers
from detrx.projects.qr_detr.analysis import RoutingAnalysis
from tests.modeling.small import make_input, make_model
from tests.projects.contract import (
    DETECTORS,
    METHODS,
    Inference,
    detector,
    losses_of,
    make_batch,
    switch_on,
    training_step,
)

QUERIES, LAYERS = 10, 3
CONFIGS = [f"qr_detr/qr_{name}_digits.py" for name in ("deformable_detr", "conditional_detr", "dab_detr")]


def routed(name: str = "deformable_detr", **options) -> DetectionTransformer:
    torch.manual_seed(0)
    return switch_on(detector(name), QueryRouting(**options))


def exit_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: loss for key, loss in losses.items() if "_exit_" in key}


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["eeqr", "self_attn", "cross_attn", "full"])
@pytest.mark.parametrize("name", DETECTORS)
def test_forced_open_it_is_the_plain_detector(name: str, scheme: str):
    plain = detector(name)
    model = switch_on(copy.deepcopy(plain), QueryRouting(scheme, router=FixedRouter(1.0)))
    batch = make_batch(3, 1)
    expected, found = training_step(plain, batch)[0], training_step(model, batch)[0]
    assert found.keys() - expected.keys() == {"exit"}
    for group in expected:
        assert torch.equal(found[group].logits, expected[group].logits)
        assert torch.equal(found[group].boxes, expected[group].boxes)
    for detections, others in zip(plain.eval()(batch), model.eval()(batch), strict=True):
        assert torch.equal(detections["instances"].scores, others["instances"].scores)
        assert torch.equal(detections["instances"].pred_boxes.tensor, others["instances"].pred_boxes.tensor)


def masks_of_batch() -> list[Tensor]:
    """For each layer: images that let none, one, some and all of the queries pass, other images in each layer."""
    mask = torch.zeros(4, QUERIES, dtype=torch.bool)
    mask[1, 4], mask[2, 1::3], mask[3] = True, True, True
    return [mask.roll(layer, dims=0) for layer in range(LAYERS)]


@torch.no_grad()
@pytest.mark.parametrize("regroup", ["scatter", "concat"])
@pytest.mark.parametrize("ffn", ["processed", "modified", "all"])
@pytest.mark.parametrize("name", ["deformable_detr", "conditional_detr", "dab_detr", "deformable_detr_plus_plus"])
def test_detections_do_not_depend_on_the_rest_of_the_batch(name: str, ffn: str, regroup: str):
    model, masks = routed(name, ffn=ffn, regroup=regroup).eval(), masks_of_batch()
    batch = [make_input(64, 96 - 32 * (i % 2)) for i in range(4)]
    force_routers(model, masks)
    together = predict(model, batch)
    for index, each in enumerate(batch):
        force_routers(model, [mask[[index]] for mask in masks])
        alone = predict(model, [each])
        torch.testing.assert_close(together.logits[:, [index]], alone.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.boxes[:, [index]], alone.boxes, atol=1e-4, rtol=1e-4)
    force_routers(model, 1.0)
    assert not torch.allclose(predict(model, batch).logits, together.logits, atol=1e-2)


def predict(model: DetectionTransformer, batch: list[dict]) -> Predictions:
    return model.decode(model.encode(model.preprocess(batch)))["main"]


class FirstImageShut(nn.Module):
    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        keep = torch.ones(q.shape[:2], dtype=torch.bool)
        keep[0] = False
        return keep, torch.ones(q.shape[:2])


@pytest.mark.parametrize("router", [FixedRouter(0.0), FirstImageShut()])
@pytest.mark.parametrize("name", DETECTORS)
def test_no_query_passes_in_training(name: str, router: nn.Module):
    """Of any image, or of one: losses are finite, and every parameter gets a gradient."""
    train_and_evaluate(switch_on(detector(name), QueryRouting(router=router)))


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("detach", [True, False])
def test_routers_learn_from_their_exit_heads_only(name: str, detach: bool):
    model = routed(name, detach_queries=detach)
    routers = [layer.router.weight for layer in model.decoder.layers]
    losses = losses_of(model, make_batch())
    exits = exit_losses(losses)
    others = [loss for key, loss in losses.items() if key not in exits]
    kinds = {key.split("_exit_")[0] for key in exits}
    assert len(kinds) >= 3 and exits.keys() == {f"{kind}_exit_{i}" for kind in kinds for i in range(LAYERS)}
    assert gradients(sum(others), routers) == [None] * LAYERS
    for index in range(LAYERS):
        own = sum(loss for key, loss in exits.items() if key.endswith(f"_exit_{index}"))
        reached = gradients(own, routers)
        assert [grad is not None and bool(grad.any()) for grad in reached] == [i == index for i in range(LAYERS)]
    elsewhere = [p for key, p in model.named_parameters() if p.requires_grad and "methods." not in key]
    elsewhere = [p for p in elsewhere if not any(p is router for router in routers)]
    assert all(grad is None for grad in gradients(sum(exits.values()), elsewhere)) == detach


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


@pytest.mark.parametrize("router_reads", ["layer", "block"])
def test_exit_heads_by_hand(router_reads: str):
    """They read sigma * (content + position), and their boxes start from the references that the router sees."""
    model = routed(router_reads=router_reads)
    for head in model.methods[-1].box_heads.parameters():
        nn.init.normal_(head, std=0.1)
    seen = [None] * LAYERS
    for index, layer in enumerate(model.decoder.layers):
        layer.register_forward_pre_hook(lambda module, args, index=index: seen.__setitem__(index, args[0]))
    attended = {}
    model.decoder.layers[2].norm1.register_forward_hook(lambda module, args, out: attended.setdefault("content", out))
    predictions, supervisions = training_step(model, make_batch())
    method, exits = model.methods[-1], predictions["exit"]
    if router_reads == "block":  # in EEQR_CA, the self-attended queries
        seen[2] = replace(seen[2], **attended)
    for index, queries in enumerate(seen):
        q = queries.content + queries.pos
        score = q @ model.decoder.layers[index].router.weight.T
        x = score.sigmoid().amax(-1, keepdim=True) * q
        torch.testing.assert_close(exits.logits[index], method.class_heads[index](x))
        delta, reference = method.box_heads[index](x), queries.reference
        logit = (reference.clamp(1e-3, 1 - 1e-3) / (1 - reference).clamp(1e-3, 1)).log()
        expected = delta + torch.cat([logit, torch.zeros_like(logit)], -1) if logit.shape[-1] == 2 else delta + logit
        torch.testing.assert_close(exits.boxes[index], expected.sigmoid(), atol=1e-5, rtol=1e-4)
    main, exit = (next(s for s in supervisions if s.group == group) for group in ("main", "exit"))
    assert exit.assigner is main.assigner and exit.losses == main.losses and exit.weight == main.weight


def test_exit_losses_of_detectors_with_other_losses_in_the_last_layer():
    """Align-DETR: an exit head is supervised as the layer is that it stands before."""
    assert_exits_are_supervised_as_main(routed("align_detr", exit_weight=0.5), weight=0.5)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("method", "layers"), [("hybrid_epoch", 1), ("hybrid_layer", 2), ("quality_aware", 2)])
def test_exit_heads_are_supervised_as_their_layer_is_in_this_step(method: str, layers: int, first: bool):
    """Whatever other methods change of the supervision, before or after QueryRouting in the list."""
    other, own = METHODS[method].make(), QueryRouting()
    model = switch_on(detector("deformable_detr"), *([own, other] if first else [other, own]))
    plain = model.criterion.supervisions[0]
    changed = assert_exits_are_supervised_as_main(model)
    assert len(changed) == layers and changed[0].assigner is not plain.assigner
    (later,) = assert_exits_are_supervised_as_main(model, 9) if method == "hybrid_epoch" else [plain]
    assert later.assigner is plain.assigner


def assert_exits_are_supervised_as_main(
    model: DetectionTransformer, iteration: int = 0, weight: float = 1.0
) -> list[Supervision]:
    """Returns the supervisions of the exit heads."""
    supervisions = training_step(model, make_batch(), iteration)[1]
    main, exits = ([s for s in supervisions if s.group == group] for group in ("main", "exit"))
    assert [(s.layers, s.assigner, s.losses, s.repeats, weight * s.weight) for s in main] == [
        (s.layers, s.assigner, s.losses, s.repeats, s.weight) for s in exits
    ]
    assert exit_losses(losses_of(model, make_batch(), iteration))
    return exits


@pytest.mark.parametrize("name", ["mr_detr_deformable_calibrated_digits", "mr_detr_pp_deformable_digits"])
def test_exit_heads_of_calibrated_detectors(name: str):
    """Their quality heads begin as those of their layers, learn, and teach the routers."""
    torch.manual_seed(0)
    model = switch_on(make_model(f"mr_detr/{name}.py"), QueryRouting())
    heads = model.methods[-1].quality_heads
    for head, of_layer in zip(heads, model.decoder.heads.quality_heads, strict=True):
        assert torch.equal(head.weight, of_layer.weight) and head.weight is not of_layer.weight
    losses = train_and_evaluate(model)
    quality = [losses[f"loss_quality_exit_{index}"] for index in range(LAYERS)]
    routers = [layer.router.weight for layer in model.decoder.layers]
    model.zero_grad()
    sum(losses_of(model, make_batch())[f"loss_quality_exit_{index}"] for index in range(LAYERS)).backward()
    assert all(loss > 0 for loss in quality)
    assert all(weight.grad.any() for weight in [*routers, *(head.weight for head in heads)])


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_exit_heads_are_not_at_inference(config: str):
    model, images = make_model(config).eval(), torch.randn(1, 3, 64, 96)
    state = model.state_dict()
    plain = detector(config.split("/qr_")[1].removesuffix("_digits.py")).state_dict()
    new = {key for key in state if not key.startswith("methods.")} - plain.keys()
    assert new == {f"decoder.layers.{index}.router.weight" for index in range(LAYERS)}
    for parameter in model.methods.parameters():
        parameter.fill_(float("nan"))
    assert model.predict(images, None)["main"].logits.isfinite().all()
    program = torch.export.export(Inference(model), (images,))
    names = program.graph_signature.inputs_to_parameters
    used = {names[node.name] for node in program.graph.nodes if node.name in names and node.users}
    used = {key.removeprefix("model.") for key in used}
    assert new <= used and not [key for key in used if key.startswith("methods.")]
    for image in (images, torch.randn(1, 3, 64, 96)):
        expected, found = model.predict(image, None)["main"], program.module()(image)
        torch.testing.assert_close(found[0], expected.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1], expected.boxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["deformable_detr", "conditional_detr", "dab_detr"])
def test_compiled_inference_is_one_graph(name: str):
    model, images = routed(name).eval(), torch.randn(2, 3, 64, 96)
    compiled = torch.compile(model.predict, fullgraph=True, backend="aot_eager")
    expected, found = model.predict(images, None)["main"], compiled(images, None)["main"]
    torch.compiler.reset()
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["deformable_detr", "conditional_detr", "dab_detr"])
def test_multiply_adds_are_those_of_the_passing_queries(name: str):
    model, plain, images = routed(name).eval(), detector(name).eval(), torch.randn(1, 3, 64, 96)
    full = count_flops(plain, images).by_module()["model.decoder"]
    counted = []
    for passing in (0.0, 0.5, 1.0):
        force_routers(model, passing)
        counted.append(count_flops(model, images).by_module()["model.decoder"])
    assert counted[0] < counted[1] < counted[2] == full


def train_and_evaluate(model: DetectionTransformer) -> dict[str, Tensor]:
    """The losses of a training step."""
    losses = losses_of(model, make_batch())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    trained = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert not [key for key, grad in trained.items() if grad is None or not grad.isfinite().all()]
    with torch.no_grad():
        found = model.eval()([make_input(64, 96), make_input(64, 64)])
    assert all(len(each["instances"]) and each["instances"].scores.isfinite().all() for each in found)
    return losses


@pytest.mark.parametrize(
    ("name", "methods", "suffix"),
    [
        ("deformable_detr", [HybridBranch(num_queries=12, copies=3)], "_one2many"),
        ("deformable_detr_plus_plus", [HybridBranch(num_queries=12, copies=3)], "_one2many"),
        ("conditional_detr", [HybridBranch(num_queries=12, copies=3)], "_one2many"),
        ("deformable_detr_plus_plus", [MrDETR()], "_sep"),
        ("dab_detr", [ContrastiveDenoising(num_queries=4)], "_dn"),
        ("dn_detr", [], "_dn"),
        ("dino", [], "_dn"),
        ("dino", [MrDETR(), HybridBranch(num_queries=12, copies=3)], "_one2many"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_beside_other_methods(name: str, methods: list[Method], suffix: str, first: bool):
    """They train and evaluate together; switched on first or last."""
    added = copy.deepcopy(methods)
    model = detector(name)
    added = [QueryRouting(), *added] if first else [*added, QueryRouting()]
    losses = train_and_evaluate(switch_on(model, *added))
    assert any(suffix in key for key in losses) and exit_losses(losses)


def test_groups_that_main_does_not_see_do_not_change_it():
    model, batch = routed("dino"), make_batch()
    with_denoising = training_step(model, batch)[0]
    model.methods = nn.ModuleList(m for m in model.methods if not isinstance(m, ContrastiveDenoising))
    alone = training_step(model, batch)[0]
    torch.testing.assert_close(with_denoising["main"].logits, alone["main"].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(with_denoising["exit"].boxes, alone["exit"].boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["deformable_detr", "dn_detr"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("router_reads", ["layer", "block"])
def test_activation_checkpointing_changes_nothing(name: str, detach: bool, router_reads: str):
    model, batch = routed(name, detach_queries=detach, router_reads=router_reads), make_batch()
    recomputing = copy.deepcopy(model)
    recomputing.decoder.activation_checkpointing = True
    for each in (model, recomputing):
        sum(losses_of(each, batch).values()).backward()
    for (key, expected), found in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda m, key=key: f"{key}: {m}")
    assert all(layer.routed is None for layer in recomputing.decoder.layers)


@pytest.mark.parametrize("name", ["deformable_detr", "dn_detr", "conditional_detr"])
def test_mixed_precision(name: str):
    model, batch = routed(name), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_counts_are_logged():
    model, batch = routed(router=FixedRouter(0.3), period=5), make_batch()
    for iteration, logged in ((3, False), (4, True), (9, True)):
        with EventStorage(iteration) as storage:
            model.train()(batch)
        values = {key: value for key, (value, _) in storage.latest().items() if key.startswith("routing/")}
        assert values == ({f"routing/passing{layer}": 3.0 for layer in ("", "_0", "_1", "_2")} if logged else {})


def test_what_it_does_not_work_for():
    with pytest.raises(ValueError, match=r'scheme must be "eeqr", one of self_attn, .*, got .*ffn'):
        QueryRouting(["full", "ffn"])
    for options, message in (
        ({"regroup": "sort"}, "regroup must be one of scatter, concat, got 'sort'"),
        ({"ffn": "none"}, "ffn must be one of processed, modified, all, got 'none'"),
        ({"router_reads": "memory"}, "router_reads must be one of layer, block, got 'memory'"),
        ({"exit_weight": -1}, "exit_weight must not be negative, got -1"),
        ({"pass_column": 2}, "pass_column must be 0 or 1, got 2"),
        ({"period": 0}, "period must be 1 or more iterations, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            QueryRouting(**options)
    with pytest.raises(ValueError, match="wraps a DecoderLayer, but decoder layer 0 is a RoutedDecoderLayer"):
        switch_on(routed(), QueryRouting())
    with pytest.raises(ValueError, match="cannot be combined with denoising"):
        routed("dino", regroup="concat")
    with pytest.raises(ValueError, match="decoder layer 0 has no router"):
        force_routers(detector("dino"), 0.5)
    with pytest.raises(ValueError, match="2 values for 3 decoder layers"):
        force_routers(routed(), [0.5, 1.0])


@torch.no_grad()
def test_tool_counts_what_passes(request, tmp_path, monkeypatch):
    """Fixed routers of known parts: the figures say so, and the picture is there."""
    config = str(request.config.rootpath / "projects/qr_detr/configs/qr_deformable_detr_digits.py")
    cfg = LazyConfig.load(config)
    model = routed().eval()
    force_routers(model, [0.5, 0.2, 1.0])
    records = [{"image_id": i} for i in range(3)]
    monkeypatch.setattr(tool, "get_detection_dataset_dicts", lambda *_, **__: records)
    monkeypatch.setattr(tool, "load_model", lambda *_: model)
    cfg.model = small(cfg)
    monkeypatch.setattr(tool, "load_config", lambda *_: cfg)
    monkeypatch.setattr(tool, "instantiate", lambda _: lambda record: make_input(64, 96))
    arguments = ["--routing", "--config-file", config, "--weights", "model.pth", "--output", str(tmp_path / "out")]
    tool.main([*arguments, "--cost-images", "2"])
    figures = json.loads((tmp_path / "out" / "routing.json").read_text())
    assert figures["images"] == 3 and figures["queries"] == QUERIES
    assert [layer["passing"] for layer in figures["layers"]] == [[5] * 3, [2] * 3, [10] * 3]
    assert [layer["wrapped"] for layer in figures["layers"]] == ["full", "self_attn", "cross_attn"]
    assert figures["mean_passing"] == pytest.approx(17 / 3)
    macs = figures["multiply_adds"]
    assert macs["images"] == 2 and 0 < macs["routed"] < macs["plain"]
    assert figures["milliseconds"]["images"] == 2 and figures["milliseconds"]["plain"] > 0
    assert (tmp_path / "out" / "routing.png").read_bytes().startswith(b"\x89PNG")


def small(cfg):
    """The model's description, in the sizes of `make_model`."""
    from tests.modeling.small import SMALL_BACKBONE, SMALL_CHANNELS

    model = copy.deepcopy(cfg.model)
    model.backbone.model_args.update(SMALL_BACKBONE)
    model.neck.in_channels = [SMALL_CHANNELS[feature] for feature in model.neck.in_features]
    model.tokenizer.embed_dim, model.tokenizer.position_embedding.num_feats = 64, 32
    model.query_source.num_queries = QUERIES
    return model


def test_tool_with_a_detector_that_routes_nothing():
    with pytest.raises(ValueError, match="the decoder layers of this model have no router"):
        RoutingAnalysis(detector("dino"), None)
    with pytest.raises(ValueError, match="cost_images must be 0 or more, got -1"):
        RoutingAnalysis(routed(), None, cost_images=-1)


def test_tool_arguments(request):
    for arguments in ([], ["--routing", "--num", "0"]):
        with pytest.raises(SystemExit):
            tool.parse_args(["--config-file", "a.py", "--weights", "b.pth", *arguments])
