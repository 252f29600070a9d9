"""torch.compile of a detector in training: the losses and gradients of eager mode, however the graphs are cut."""

import copy
import shutil
from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.modeling.small import make_input, make_model, with_boxes
from tests.projects.contract import ONCE, losses_of, with_and_without

# Compiling takes long: one detector of each kind of queries and decoder, and methods that are in none of their configs.
DETECTORS = (
    "detr/detr_digits.py",
    "dn_detr/dn_detr_digits.py",
    "dino/dino_digits.py",
    "mr_detr/mr_detr_pp_deformable_digits.py",
    "paq_detr/paq_deformable_detr_digits.py",
    "qr_detr/qr_deformable_detr_digits.py",
)
METHODS = ("hybrid_layer", "distillation")


def shallow(cfg: DictConfig) -> None:
    cfg.encoder.num_layers, cfg.decoder.num_layers = 1, 2


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> list[Tensor | None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(sum(losses.values()), trained, allow_unused=True))


def assert_same_step(model: nn.Module, compile: Callable[[nn.Module], nn.Module], tolerance: float) -> None:
    batch = [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]
    eager = copy.deepcopy(model)
    expected, found = losses_of(eager, batch), losses_of(compile(model), batch)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    for grad, other in zip(gradients(model, found), gradients(eager, expected), strict=True):
        assert (grad is None) == (other is None)
        if grad is not None:
            torch.testing.assert_close(grad, other, atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True)
def new_compiler():
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("config", DETECTORS)
def test_detectors(config: str):
    model = make_model(config, shallow)
    assert_same_step(model, lambda model: torch.compile(model, backend="eager"), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "detector"), [each for each in ONCE if each[0] in METHODS])
def test_methods(method: str, detector: str):
    model, _ = with_and_without(method, detector)
    assert_same_step(model, lambda model: torch.compile(model, backend="eager"), 1e-5)


def test_one_graph_up_to_the_assignment():
    """Of the detector itself: from the normalised images to the predictions of the decoder."""
    sizes = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    model = make_model(change=shallow)
    losses_of(
        torch.compile(model, backend=count), [with_boxes(make_input(64, 96), 2), with_boxes(make_input(64, 64), 1)]
    )
    sizes.sort()
    assert sizes[-1] > 300 and sizes[-2] < 200
    breaks = sorted(counters["graph_break"])
    assert len(breaks) == 2 and "preprocess" in breaks[0] + breaks[1] and "assign_all" in breaks[0] + breaks[1]


@pytest.mark.slow
def test_new_sizes_are_not_compiled_forever():
    """No function reaches the limit of recompilations, which would be an error here, and new graphs become rare."""
    model = torch.compile(make_model(change=shallow), backend="eager")
    graphs = []
    for index in range(10):
        sizes = [(40 + 9 * index, 64 + 5 * index), (64, 70 - 3 * index)]
        losses_of(model, [with_boxes(make_input(*size), 1 + (index + i) % 4) for i, size in enumerate(sizes)])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] - graphs[5] <= (graphs[5] - graphs[0]) / 3, graphs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
def test_inductor():
    def one_layer(cfg: DictConfig) -> None:
        cfg.encoder.num_layers = cfg.decoder.num_layers = 1

    assert_same_step(make_model(change=one_layer), torch.compile, 1e-3)
