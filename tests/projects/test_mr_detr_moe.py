"""The mixtures of experts of Mr. DETR++: gates, levels, what stays at inference, and the account of the loads."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detrx import model_zoo
from detrx.analysis.flops import count_flops
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.d2.utils import EventStorage
from detrx.engine import ModelEMA
from detrx.layers import FFN, ExpertLoad, Gate, MixtureFFN, MultiScaleDeformableAttention
from detrx.modeling import DetectionTransformer, MultiScaleTokens, Targets
from detrx.projects.mr_detr import ExpertLoads, MrDETR, ScaleAwareEncoderLayer
from detrx.projects.mr_detr.moe import take_loads, unevenness
from tests.modeling.small import make_input, make_model, with_boxes

CONFIGS = DEFORMABLE, DINO, ALIGN = [f"mr_detr/mr_detr_pp_{name}_digits.py" for name in ("deformable", "dino", "align")]
COCO = [f"mr_detr/mr_detr_pp_{name}_r50.py" for name in ("deformable", "dino", "align")]


def make_batch() -> list[dict]:
    return [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]


def losses_of(model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    torch.manual_seed(0)  # of denoising
    return model.train()(batch)


def predict(model: DetectionTransformer, batch: list[dict]) -> dict:
    """Predictions of a training step, by group."""
    torch.manual_seed(0)
    targets = Targets.from_instances([each["instances"] for each in batch], (0, 1), model.device)
    return model.train().train_step(model.preprocess(batch), targets)[0]


def mr_detr(model: DetectionTransformer) -> MrDETR:
    (method,) = (method for method in model.methods if isinstance(method, MrDETR))
    return method


def own_gates(model: DetectionTransformer) -> list[Gate]:
    """G' of every decoder layer."""
    method = mr_detr(model)
    return list(method.routes[method.route_names.index("gate")].own["gate"])


@pytest.mark.parametrize("name", CONFIGS)
def test_gates_learn_from_their_own_routes_only(name: str):
    model = make_model(name)
    losses = losses_of(model, make_batch())
    decoder = {key: loss for key, loss in losses.items() if "_enc" not in key and "balance" not in key}
    routes = {
        "gate": [loss for key, loss in decoder.items() if "_sep" in key],
        "instruction": [loss for key, loss in decoder.items() if "_group" in key or "_o2m" in key],
        "main": [loss for key, loss in decoder.items() if not any(s in key for s in ("_sep", "_group", "_o2m"))],
    }
    parts = [
        [layer.ffn.gate.weight for layer in model.decoder.layers],
        [gate.weight for gate in own_gates(model)],
        [layer.ffn.experts.weight1 for layer in model.decoder.layers],
    ]
    reached = {}
    for route, own in routes.items():
        assert len(own) >= 9
        gradients = [torch.autograd.grad(sum(own), part, retain_graph=True, materialize_grads=True) for part in parts]
        reached[route] = [[bool(gradient.any()) for gradient in part] for part in gradients]
    yes, no = [True] * 3, [False] * 3
    assert reached == {"gate": [no, yes, yes], "instruction": [yes, no, yes], "main": [yes, no, yes]}


@pytest.mark.parametrize("name", CONFIGS)
def test_experts_stay_at_inference_and_routes_do_not(name: str):
    model = make_model(name).eval()
    plain = copy.deepcopy(model)
    plain.methods = nn.ModuleList()
    with torch.no_grad():
        for parameter in model.methods.parameters():
            parameter.fill_(float("nan"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = model.predict(images, None)["main"], plain.predict(images, None)["main"]
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)
    assert count_flops(model, images).total() == count_flops(plain, images).total()
    for mixture in (module for module in plain.modules() if isinstance(module, MixtureFFN)):
        kept = mixture.gate.weight.detach().clone()
        with torch.no_grad():
            mixture.gate.weight.neg_()
            assert not torch.equal(plain.predict(images, None)["main"].logits, expected.logits)
            mixture.gate.weight.copy_(kept)


@pytest.mark.parametrize("name", CONFIGS)
def test_inference_is_one_graph(name: str):
    model = make_model(name).eval()
    model.forward = lambda x: model.predict(x, None)["main"].logits
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        program = torch.export.export(model, (images,))
        for found in (compiled(images), program.module()(images)):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
    called = [str(node.target) for node in program.graph.nodes]
    assert called.count("detrx.moe_route.default") == 4  # of an encoder layer and three decoder layers
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    parameters = [spec.target for spec in program.graph_signature.input_specs if spec.arg.name in used and spec.target]
    assert not [parameter for parameter in parameters if parameter.startswith("methods")]


def test_multiply_adds_of_experts():
    """Those of the FFN that they replace, and of the gate."""
    cfg = model_zoo.get_config(DEFORMABLE).model
    images = torch.randn(2, 3, 64, 64)
    low, high, queries, dim, hidden, experts = 2 * 2, 8 * 8 + 4 * 4, 50, 128, 256, 8
    by_module = count_flops(instantiate(cfg).eval(), images).by_module()
    assert by_module["model.encoder.layers.0.ffn"] == 2 * high * 2 * dim * hidden
    mixture = 2 * dim * hidden + dim * experts + 2 * dim  # layers, gate, weighted sum of two experts
    assert by_module["model.encoder.layers.0.experts"] == 2 * low * mixture
    assert by_module["model.decoder.layers.1.ffn"] == 2 * queries * mixture


@pytest.mark.parametrize("name", CONFIGS)
def test_with_the_same_gate_the_route_is_the_main_one(name: str):
    model, batch = make_model(name), make_batch()
    before = predict(model, batch)
    assert not torch.allclose(before["gate"].logits, before["main"].logits)
    with torch.no_grad():
        for gate, layer in zip(own_gates(model), model.decoder.layers, strict=True):
            gate.weight.copy_(layer.ffn.gate.weight)
    after = predict(model, batch)
    torch.testing.assert_close(after["gate"].logits, after["main"].logits)
    torch.testing.assert_close(after["main"].logits, before["main"].logits)
    if "denoising" in after:
        torch.testing.assert_close(after["denoising_gate"].boxes, after["denoising"].boxes)


def test_routes_with_experts_and_an_ffn_of_their_own():
    """Beside the shared experts, a copy of all of them with its gate."""
    cfg = model_zoo.get_config(DEFORMABLE).model
    cfg.methods[0].routes = ["self_attn+gate", "cross_attn+ffn"]
    model = instantiate(cfg)
    loads = losses_of(model, make_batch()) and predict(model, make_batch())
    assert {"self_attn+gate", "cross_attn+ffn"} < set(loads)
    assert [len(each) for each in take_loads(model).values()] == [1, 3, 6]


def tokens_of(shapes: tuple[tuple[int, int], ...], dim: int) -> MultiScaleTokens:
    areas = [height * width for height, width in shapes]
    starts = torch.tensor([sum(areas[:level]) for level in range(len(areas))])
    x, pos = torch.randn(2, 2, sum(areas), dim)
    return MultiScaleTokens(x, pos, None, shapes, torch.tensor(shapes), starts, None)


def make_layer(first_level: int, **options: str) -> ScaleAwareEncoderLayer:
    attention = MultiScaleDeformableAttention(16, num_heads=2, num_levels=3, num_points=2)
    return ScaleAwareEncoderLayer(attention, FFN(16, 32), MixtureFFN(16, 16), 16, first_level, **options)


@pytest.mark.parametrize("first_level", [1, 2])
def test_levels_go_through_experts_or_the_ffn(first_level: int):
    layer, memory = make_layer(first_level), tokens_of(((5, 7), (3, 4), (2, 2)), 16)
    where = memory.per_level(memory.cell_centres()[0].expand(2, -1, -1))
    x = layer.norm1(memory.tokens + layer.attend(memory, where))
    levels = []
    for level, part in enumerate(x.split([35, 12, 4], dim=1)):
        levels.append(part + (layer.ffn if level < first_level else layer.experts)(part))
    torch.testing.assert_close(layer(memory, where).tokens, layer.norm2(torch.cat(levels, dim=1)))
    assert layer.train().experts.gate.load.counts.sum() == 2 * 2 * sum((35, 12, 4)[first_level:])


@pytest.mark.parametrize("first_level", [1, 2])
def test_low_resolution_tokens_may_pass_the_shared_ffn_and_the_experts(first_level: int):
    """One residual and one norm for the sum; the parameters are those of the layer whose experts replace the FFN."""
    layer, memory = make_layer(first_level, combine="add"), tokens_of(((5, 7), (3, 4), (2, 2)), 16)
    where = memory.per_level(memory.cell_centres()[0].expand(2, -1, -1))
    x = layer.norm1(memory.tokens + layer.attend(memory, where))
    levels = []
    for level, part in enumerate(x.split([35, 12, 4], dim=1)):
        shared = layer.ffn.linear2(layer.ffn.linear1(part).relu())
        levels.append(part + shared if level < first_level else part + shared + layer.experts(part))
    torch.testing.assert_close(layer(memory, where).tokens, layer.norm2(torch.cat(levels, dim=1)))
    assert layer.state_dict().keys() == make_layer(first_level).state_dict().keys()
    with pytest.raises(ValueError, match="combine must be 'replace' or 'add', got 'both'"):
        make_layer(first_level, combine="both")


@pytest.mark.parametrize("first_level", [0, 3])
def test_both_kinds_of_levels_must_exist(first_level: int):
    with pytest.raises(ValueError, match=f"first_level is {first_level}, but of the 3 levels"):
        make_layer(first_level)


@pytest.mark.parametrize("name", [*CONFIGS, *COCO])
def test_configs_have_experts_from_stride_32(name: str):
    cfg = model_zoo.get_config(name).model
    cfg.backbone.pretrained = False
    with torch.device("meta"):
        model = instantiate(cfg).eval()
        shapes = model.tokenizer(model.neck(model.backbone(torch.empty(1, 3, 640, 640))), None).shapes
    for layer in model.encoder.layers:
        low = [640 // height >= 32 for height, _ in shapes]
        assert low == [level >= layer.first_level for level in range(len(shapes))]
    widths = {module.experts.weight1.shape for module in model.modules() if isinstance(module, MixtureFFN)}
    assert widths == {(8, cfg.tokenizer.embed_dim, cfg.encoder.layer.ffn.hidden_dim // 2)}


@pytest.mark.parametrize("name", CONFIGS)
def test_loads_add_up(name: str):
    model, batch = make_model(name), make_batch()
    groups = predict(model, batch)
    loads = take_loads(model)
    assert {where: len(each) for where, each in loads.items()} == {"encoder": 1, "decoder": 3, "auxiliary": 3}
    own = sum(groups[group].logits.shape[2] for group in groups if "gate" in group)
    others = sum(groups[group].logits.shape[2] for group in groups if "gate" not in group and "encoder" not in group)
    tokens = {"encoder": 2 * 3, "decoder": others, "auxiliary": own}  # 64 x 96: 2 x 3 cells of stride 32
    for where, each in loads.items():
        assert [load.counts.sum().item() for load in each] == [2 * 2 * tokens[where]] * len(each)
    assert take_loads(model) == {}


def test_balancing_loss():
    model, batch = make_model(DEFORMABLE), make_batch()
    model.methods[-1].balancing_weight = 0.3
    losses = losses_of(model, batch)
    predict(model, batch)
    for where, loads in take_loads(model).items():
        expected = 0.0
        for load in loads:
            shares, chances = (load.counts / load.counts.sum()).tolist(), load.mean_probability.tolist()
            expected += 8 * sum(share * chance for share, chance in zip(shares, chances, strict=True))
        assert losses[f"loss_balance_{where}"].item() == pytest.approx(0.3 * expected, rel=1e-5)
    balance = sum(loss for key, loss in losses.items() if "balance" in key)
    gates = {key: p for key, p in model.named_parameters() if "gate" in key}
    assert len(gates) == 7
    for key, gradient in zip(gates, torch.autograd.grad(balance, list(gates.values())), strict=True):
        assert gradient.any(), key


def test_balancing_evens_out_the_load():
    torch.manual_seed(0)
    mixture, x = MixtureFFN(8, 8), torch.randn(200, 8) + 1
    optimizer = torch.optim.SGD(mixture.parameters(), lr=1.0)
    uneven = []
    for _ in range(40):
        mixture(x)
        uneven.append(unevenness(mixture.gate.load)[0].item())
        optimizer.zero_grad()
        mixture.gate.load.balancing_loss().backward()
        optimizer.step()
    assert uneven[-1] < 0.7 * uneven[0]


def test_without_balancing_there_is_no_loss():
    model = make_model(DEFORMABLE)
    model.methods[-1].balancing_weight = 0.0
    assert not [key for key in losses_of(model, make_batch()) if "balance" in key]


@pytest.mark.parametrize(
    "counts, expected", [([5, 5, 5, 5], [1, 4]), ([20, 0, 0, 0], [4, 1]), ([10, 10, 0, 0], [2, 2]), ([7], [1, 1])]
)
def test_unevenness(counts: list[int], expected: list[float]):
    found = unevenness(ExpertLoad(torch.tensor(counts), torch.zeros(len(counts))))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_loads_are_logged_every_period():
    model, batch = make_model(DEFORMABLE), make_batch()
    model.methods[-1].period = 3
    logged = []
    with EventStorage() as storage:
        for storage.iter in range(7):
            losses_of(model, batch)
            logged.append(dict(storage.latest()))
    assert [len(each) for each in logged] == [0, 0, 6, 6, 6, 6, 6]
    assert logged[4]["moe/encoder_max_over_mean"][1] == 2 and logged[5]["moe/encoder_max_over_mean"][1] == 5
    predict(model, batch)
    for where, loads in take_loads(model).items():
        means = torch.stack([unevenness(load) for load in loads]).mean(0).tolist()
        found = [logged[-1][f"moe/{where}_{key}"][0] for key in ("max_over_mean", "effective_experts")]
        assert found == pytest.approx(means)


@pytest.mark.parametrize("name", [DEFORMABLE, DINO])
def test_recomputed_layers_do_not_count_twice(name: str):
    batch, expected = make_batch(), make_model(name)
    recomputing = copy.deepcopy(expected)
    recomputing.encoder.activation_checkpointing = recomputing.decoder.activation_checkpointing = True
    losses = []
    for model in (expected, recomputing):
        losses.append(losses_of(model, batch))
        sum(losses[-1].values()).backward()
        assert take_loads(model) == {}  # nothing is noted down by the backward pass
    for key, loss in losses[0].items():
        torch.testing.assert_close(losses[1][key], loss, msg=lambda m, key=key: f"{key}: {m}")
    for (key, wanted), found in zip(expected.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_learns(name: str):
    """Those of experts without tokens have a gradient, which is zero: distributed training waits for every one."""
    model = make_model(name)
    with torch.no_grad():
        for gate in (module for module in model.modules() if isinstance(module, Gate)):
            gate.weight.zero_()  # equal logits: the first two experts take all tokens
    sum(losses_of(model, make_batch()).values()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    for mixture in (module for module in model.modules() if isinstance(module, MixtureFFN)):
        gradient = mixture.experts.weight1.grad
        assert gradient[:2].any() and not gradient[2:].any()
        assert mixture.gate.weight.grad.any()


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_training_misses_no_gradient(process_group):
    """Without `find_unused_parameters` the second step fails if the first one left out a parameter."""
    wrapped = DistributedDataParallel(make_model(DINO))
    for _ in range(3):
        losses = losses_of(wrapped, make_batch())
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_copies_use_their_own_experts():
    model, batch = make_model(DEFORMABLE), make_batch()
    expected = losses_of(model, batch)  # leaves tensors with a graph where a load is not taken
    predict(model, batch)
    copied = copy.deepcopy(model)
    assert take_loads(copied) == {} and take_loads(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for key, loss in losses_of(copied, batch).items():
        torch.testing.assert_close(loss, expected[key], msg=lambda m, key=key: f"{key}: {m}")
    names = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    assert not [key for key in model.methods.state_dict() if "experts" in key]


def test_ema_follows():
    model = make_model(DEFORMABLE)
    ema = ModelEMA(model, decay=0.5)
    before = {key: value.clone() for key, value in ema.model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    losses_of(model, make_batch())
    ema.update(model)
    for key, parameter in ema.model.named_parameters():
        torch.testing.assert_close(parameter, before[key] + 0.01)
    with torch.no_grad():
        assert "instances" in ema.model([make_input(64, 64)])[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype):
    model = make_model(DINO)
    with torch.autocast("cpu", dtype):
        losses = losses_of(model, make_batch())
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def plus_plus(**changes: object) -> DetectionTransformer:
    """The digits config with changes: route names, decoder (False: its usual FFN), encoder (the same)."""
    plain = model_zoo.get_config("mr_detr/mr_detr_deformable_digits.py").model
    cfg = model_zoo.get_config(DEFORMABLE).model
    if not changes.get("decoder", True):
        cfg.decoder.layer.ffn = plain.decoder.layer.ffn
    if not changes.get("encoder", True):
        cfg.encoder.layer = plain.encoder.layer
    cfg.methods[0].routes = changes["routes"]
    if not changes.get("loads", True):
        del cfg.methods[1]
    return instantiate(cfg)


@pytest.mark.parametrize(
    "changes, kinds",
    [
        ({"routes": ["instruction", "ffn"], "decoder": False}, {"encoder"}),
        ({"routes": ["instruction", "gate"], "encoder": False}, {"decoder", "auxiliary"}),
        ({"routes": ["instruction"], "encoder": False}, {"decoder"}),
        ({"routes": ["instruction", "ffn"], "encoder": False, "decoder": False, "loads": False}, set()),
    ],
)
def test_each_mixture_can_be_had_alone(changes: dict, kinds: set):
    model = plus_plus(**changes)
    losses = losses_of(model, make_batch())
    assert {key.removeprefix("loss_balance_") for key in losses if "balance" in key} == kinds
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"routes": ["gate"], "decoder": False}, "route 'gate' needs experts .* FFN of decoder layer 0 is FFN"),
        ({"routes": ["ffn+gate"]}, 'own "ffn" already has its own gate'),
        ({"routes": ["ffn"], "decoder": False, "encoder": False}, "ExpertLoads: the detector has no mixture"),
    ],
)
def test_errors(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plus_plus(**changes)


@pytest.mark.parametrize("options", [{"balancing_weight": -0.1}, {"period": 0}])
def test_impossible_values(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        instantiate(L(ExpertLoads)(**options))
