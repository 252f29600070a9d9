"""Supervision of queries: positives and gradients of training steps, compared with the criterion and autograd."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrx.analysis.activation import gini
from detrx.analysis.queries import QueryAnalysis
from detrx.analysis.supervision import MEASURES, SupervisionAnalysis
from detrx.modeling import DetectionTransformer, Targets
from detrx.projects.h_detr import HybridEpoch
from detrx.projects.paq_detr import QualityAwareAssignment
from detrx.projects.paq_detr.analysis import PatternsAnalysis
from detrx.projects.qr_detr.analysis import RoutingAnalysis
from detrx.projects.qr_detr.reduction import ReductionAnalysis
from tests.modeling.small import make_input, make_model, with_boxes
from tests.projects.contract import DETECTORS, detector, distillation, switch_on

PLAIN = "paq_detr/baseline_deformable_digits.py"


def observed(model: DetectionTransformer, *counts: int, **options) -> SupervisionAnalysis:
    """An analysis of images with so many boxes."""
    torch.manual_seed(0)
    analysis = SupervisionAnalysis(model.eval(), **options)
    for number, count in enumerate(counts):
        each = with_boxes(make_input(64, 64 + 32 * (number % 2)), count)
        analysis.observe(each, each["instances"])
    return analysis


@pytest.mark.parametrize("name", DETECTORS)
def test_one_to_one_matching_of_every_detector(name: str):
    """As many positives as boxes in each layer; twice as many in Align-DETR's two intermediate layers, but no more than
    half of the 10 queries."""
    analysis = observed(detector(name), 3, 0, 2)
    figures = analysis.figures()
    assert (figures["images"], figures["boxes"], figures["layers"]) == (3, 5, 3)
    last, every = (np.array(figures[measure]["sums"]) for measure in ("positives_last_layer", "positives"))
    assert (
        last.sum() == 5 and every.sum() == (2 * (3 + 4) + 5 if name == "align_detr" else 15) and (every >= last).all()
    )
    gradient = np.array(figures["gradient"]["sums"])
    assert gradient.shape == last.shape == (figures["queries"],) and (gradient > 0).all()
    ranked = name in ("dino", "align_detr", "pattern_queries") or name.endswith(("two_stage", "plus_plus"))
    assert figures["index"] == ("rank of the proposal" if ranked else "learned query")


def test_gradient_is_that_of_the_main_losses():
    """With respect to the content with which queries enter the decoder, here the rows of an embedding."""
    model = make_model(PLAIN)
    each = with_boxes(make_input(64, 64), 3)
    analysis = SupervisionAnalysis(model.eval())
    analysis.observe(each, each["instances"])

    targets = Targets.from_instances([each["instances"]], [0], model.device)
    model.train()
    for module in model.backbone.modules():
        module.train(not isinstance(module, torch.nn.BatchNorm2d))
    predictions, supervisions, _ = model.train_step(model.preprocess([each]), targets)
    main = [supervision for supervision in supervisions if supervision.group == "main"]
    losses = model.criterion(predictions, targets, main)
    (expected,) = torch.autograd.grad(sum(losses.values()), model.query_source.query_embed.weight)
    np.testing.assert_allclose(analysis.sums["gradient"], expected.norm(dim=1).numpy(), rtol=1e-4)
    (pairs, *_) = model.criterion.assign(predictions, targets, main)
    counted = np.zeros((3, 10))
    for layer, query in zip(pairs.layer.tolist(), pairs.query.tolist(), strict=True):
        counted[layer, query] += 1
    assert analysis.sums["positives"].tolist() == counted.sum(0).tolist()
    assert analysis.sums["positives_last_layer"].tolist() == counted[2].tolist()


def test_assignment_of_a_teacher():
    """Where the predictions of a teacher assign the ground truth to the main queries, so they do here."""
    options = {"queries": "teacher", "matching": "index", "auxiliary": None, "constraint": "all"}
    model = detector("conditional_detr")
    switch_on(model, distillation(model, losses=["prediction"], **options))
    analysis = observed(model, 3)
    assert analysis.sums["positives"].sum() == 9 and analysis.sums["positives_last_layer"].sum() == 3


def test_nothing_is_updated():
    model = detector("dino").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    observed(model, 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert not model.decoder._forward_pre_hooks


def test_methods_change_what_is_counted():
    """Quality-aware assignment in layers 0 and 1, here of four positives; the last one keeps one for each box."""
    plain, model = (detector("deformable_detr_plus_plus") for _ in range(2))
    switch_on(model, QualityAwareAssignment(minimum=4))
    found, expected = observed(model, 1, 1), observed(plain, 1, 1)
    assert found.sums["positives_last_layer"].tolist() == expected.sums["positives_last_layer"].tolist()
    assert (found.sums["positives"].sum(), expected.sums["positives"].sum()) == (2 * (4 + 4 + 1), 2 * 3)


def test_methods_that_follow_the_iteration():
    """HybridEpoch gives each box several queries until its epochs are over."""
    model = switch_on(detector("deformable_detr_plus_plus"), HybridEpoch(max_iter=10, copies=2))
    early, late = (observed(model, 3, iteration=iteration) for iteration in (0, 10))
    assert (early.sums["positives_last_layer"].sum(), late.sums["positives_last_layer"].sum()) == (6, 3)


@pytest.mark.parametrize("constraint", ["none", "last", "all"])
def test_methods_that_complete_their_assigners_in_the_step(constraint: str):
    """With the teacher's queries, D3ETR's assigners get the teacher's predictions after the supervisions are made.

    Without losses of distillation, each layer gets one positive per box, whoever assigns it."""
    method = distillation(
        detector("conditional_detr"), queries="teacher", matching="index", auxiliary=None, constraint=constraint
    )
    model = switch_on(detector("conditional_detr"), method)
    analysis = observed(model, 3, 2)
    assert (analysis.sums["positives_last_layer"].sum(), analysis.sums["positives"].sum()) == (5, 15)


def test_methods_supervise_once_per_step(monkeypatch: pytest.MonkeyPatch):
    method = HybridEpoch(max_iter=10, copies=2)
    calls = []
    supervise = method.supervise
    monkeypatch.setattr(method, "supervise", lambda supervisions: calls.append(1) or supervise(supervisions))
    observed(switch_on(detector("deformable_detr_plus_plus"), method), 3, 1)
    assert len(calls) == 2


def tensors_of(value: object) -> list[int]:
    """Identities of the tensors in the attributes of an analysis, but for those of its model."""
    if isinstance(value, torch.Tensor):
        return [id(value)]
    if isinstance(value, QueryAnalysis) or dataclasses.is_dataclass(value):
        value = vars(value)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [each for part in values for each in tensors_of(part)]


@pytest.mark.parametrize(
    ("config", "kind", "options"),
    [
        ("paq_detr/paq_deformable_detr_patterns_digits.py", PatternsAnalysis, (["zero"],)),
        ("qr_detr/qr_deformable_detr_digits.py", RoutingAnalysis, (None, 0)),
        (PLAIN, ReductionAnalysis, (None,)),
    ],
)
def test_analyses_of_detections_do_not_watch_training_steps(config: str, kind: type[QueryAnalysis], options: tuple):
    model = make_model(config).eval()
    analysis = kind(model, *options)
    before = tensors_of(analysis)
    observed(model, 2)
    assert tensors_of(analysis) == before
    with torch.no_grad():
        model([make_input(64, 64)])
    noted = tensors_of(analysis)
    assert len(noted) > len(before)
    observed(model, 2, 1)
    assert tensors_of(analysis) == noted


def test_what_is_written(tmp_path: Path):
    analysis = observed(detector("deformable_detr_plus_plus"), 3, 2)
    summary = analysis.write(tmp_path)
    assert "queries (index: rank of the proposal) were positives in 2 training images with 5 boxes" in summary
    figures = json.loads((tmp_path / "supervision.json").read_text())
    assert figures == analysis.figures()
    for measure in MEASURES:
        assert figures[measure]["gini"] == pytest.approx(gini(figures[measure]["sums"]))
        assert figures[measure]["lorenz"][-1] == [1.0, pytest.approx(1.0)]
    image = Image.open(tmp_path / "supervision.png")
    assert min(image.size) > 400 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    table = SupervisionAnalysis.compare({"plain": {1: analysis}}, tmp_path)
    assert table.count("| plain | ") == 3
    assert json.loads((tmp_path / "gini_gradient.json").read_text())["plain"]["1"] == analysis.gini("gradient")
    assert analysis.scalars() == {f"gini/{measure}": analysis.gini(measure) for measure in MEASURES}


def test_images_without_boxes(tmp_path: Path):
    analysis = observed(detector("deformable_detr_plus_plus"), 0)
    assert "0 of 10 queries" in analysis.write(tmp_path)
    assert json.loads((tmp_path / "supervision.json").read_text())["positives"]["gini"] is None
