"""Section 3.3 of QR-DETR as a tool: AP with fewer queries, and with one of the two attentions only."""

import argparse
import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrx.d2.structures import Boxes, Instances
from detrx.modeling import DetectionTransformer, Predictions
from detrx.projects.qr_detr import QueryRouting
from detrx.projects.qr_detr.analysis import RoutingAnalysis
from detrx.projects.qr_detr.reduction import WITH, ReductionAnalysis, without
from tests.modeling.small import make_input, make_model
from tests.projects.contract import DETECTORS, detector, switch_on


class CountingEvaluator:
    """The AP is the number of detections per image."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.images: dict[int, Instances] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        assert "image" not in inputs[0]
        self.images |= {inputs[0]["image_id"]: outputs[0]["instances"]}

    def evaluate(self, img_ids: list[int]) -> dict:
        assert sorted(img_ids) == sorted(self.images)
        ap = sum(map(len, self.images.values())) / len(self.images)
        return {"bbox": {"AP": ap, "APs": float("nan"), "AP-digit": 3.0}}


def observed(model: DetectionTransformer, analysis: ReductionAnalysis, images: int = 2) -> ReductionAnalysis:
    for number in range(images):
        inputs = make_input(64, 96, image_id=number, height=128, width=192)
        with torch.no_grad():
            analysis.observe(inputs, model([inputs])[0]["instances"])
    return analysis


@pytest.mark.parametrize("kept", ["first", "random", "best"])
@pytest.mark.parametrize("name", DETECTORS)
def test_all_queries_and_fewer(name: str, kept: str):
    """With all queries and both attentions, the detections are the detector's; with fewer, those of the kept ones."""
    model = detector(name).eval()
    model.postprocess.num_detections = 1000
    analysis = ReductionAnalysis(model, CountingEvaluator(), [10, 4], kept)
    inputs = make_input(64, 96, image_id=0, height=128, width=192)
    with torch.no_grad():
        (expected,) = model([inputs])
        analysis.observe(inputs, expected["instances"])
    ((source, found),) = analysis.found["both", 10]
    assert source == {"image_id": 0, "height": 128, "width": 192}
    assert torch.equal(found.scores, expected["instances"].scores)
    assert torch.equal(found.pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
    figures = analysis.figures()
    both = [each["AP"] for each in figures["with"]["both"]]
    assert figures["counts"] == [10, 4] and both[0] > both[1] > 0
    assert both[1] == pytest.approx(both[0] * 4 / 10, rel=0.3)  # boxes without area are left out
    assert figures["with"]["both"][0]["APs"] is None and set(figures["with"]["both"][0]) == {"AP", "APs"}


def test_best_queries_are_those_of_the_detections():
    model = detector("deformable_detr").eval()
    model.postprocess.num_detections = 1
    analysis = observed(model, ReductionAnalysis(model, CountingEvaluator(), [10, 1], "best"))
    queries = [found.pred_queries.item() for _, found in analysis.found["both", 10]]
    kept, forward = [], model.decoder.forward
    model.decoder.forward = lambda groups, memory: kept.append(groups[0].pos) or forward(groups, memory)
    observed(model, analysis, images=1)
    assert any(torch.equal(pos[0, 0], model.query_source.pos.weight[query]) for pos in kept for query in queries)


@torch.no_grad()
@pytest.mark.parametrize("kept", ["first", "random", "best"])
def test_anchors_with_several_patterns(kept: str):
    """Each is several queries; the first and random ones are anchors with all their patterns."""
    model = make_model("dab_detr/dab_detr_digits.py", lambda cfg: cfg.query_source.update(num_patterns=3)).eval()
    model.postprocess.num_detections = 1000
    analysis = ReductionAnalysis(model, CountingEvaluator(), [30, 12], kept)
    assert ReductionAnalysis(model, CountingEvaluator()).counts == [30, 24, 18, 15, 9, 3]
    seen, forward = [], model.decoder.forward
    model.decoder.forward = lambda groups, memory: seen.append(groups[0]) or forward(groups, memory)
    inputs = make_input(64, 96, image_id=0)
    (expected,) = model([inputs])
    analysis.observe(inputs, expected["instances"])
    assert torch.equal(analysis.found["both", 30][0][1].scores, expected["instances"].scores)
    assert analysis.figures()["queries"] == 30
    reduced = [group for group in seen if group.content.shape[1] == 12]
    assert len(reduced) == len(WITH)
    if kept == "best":
        return
    chosen = range(4) if kept == "first" else sorted(torch.randperm(10, generator=torch.Generator().manual_seed(0))[:4])
    anchors = torch.cat([model.query_source.centres, model.query_source.sizes], 1)[[int(index) for index in chosen]]
    for group in reduced:
        assert torch.equal(group.reference[0], anchors.sigmoid().repeat(3, 1))
        assert torch.equal(group.content[0], model.query_source.patterns.weight.repeat_interleave(4, 0))


@torch.no_grad()
@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr", "deformable_detr", "dino"])
def test_one_attention_only(name: str):
    """The blocks that are left out add nothing to the content before their LayerNorm."""
    model, images = detector(name).eval(), torch.randn(1, 3, 64, 96)
    by_hand = copy.deepcopy(model)
    for layer in by_hand.decoder.layers:
        layer.cross_attention = lambda queries, memory, layout, index, layer=layer: layer.norm2(queries.content)
    assert_equal(predict_with(model, "self_attn", images), by_hand.predict(images, None)["main"])
    by_hand = copy.deepcopy(model)
    for layer in by_hand.decoder.layers:
        layer.self_attention = lambda queries, layout, index, layer=layer: layer.norm1(queries.content)
    assert_equal(predict_with(model, "cross_attn", images), by_hand.predict(images, None)["main"])
    assert_equal(predict_with(model, "both", images), model.predict(images, None)["main"])


def predict_with(model: DetectionTransformer, used: str, images: Tensor) -> Predictions:
    with without(model.decoder, used):
        return model.predict(images, None)["main"]


def assert_equal(found: Predictions, expected: Predictions) -> None:
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)


def test_files_and_what_they_say(tmp_path: Path):
    model = detector("dab_detr").eval()
    analysis = observed(model, ReductionAnalysis(model, CountingEvaluator()))
    text = analysis.write(tmp_path)
    figures = json.loads((tmp_path / "reduction.json").read_text())
    assert figures["counts"] == [10, 8, 6, 5, 3, 1] and set(figures["with"]) == set(WITH)
    assert "cross-attention only: " in text and "over 2 images" in text
    assert (tmp_path / "reduction.png").read_bytes().startswith(b"\x89PNG")


def test_beside_the_analysis_of_routing():
    """Each takes what belongs to the detector's own run, in any order."""
    for routing_first in (True, False):
        model = switch_on(detector("deformable_detr"), QueryRouting()).eval()
        routing = RoutingAnalysis(model, None, cost_images=0)
        reduction = ReductionAnalysis(model, CountingEvaluator(), [10, 5])
        for number in range(2):
            inputs = make_input(64, 96, image_id=number)
            with torch.no_grad():
                (result,) = model([inputs])
                for analysis in (routing, reduction) if routing_first else (reduction, routing):
                    analysis.observe(inputs, result["instances"])
        assert routing.figures()["queries"] == 10 and [len(counts) for counts in routing.counts] == [2, 2, 2]


class AllImages(CountingEvaluator):
    def evaluate(self) -> dict:
        return {"bbox": {}}


def test_what_it_cannot_do():
    model = detector("dab_detr").eval()
    for counts in ([0], [11], []):
        with pytest.raises(ValueError, match="counts must be from 1 to 10 queries"):
            ReductionAnalysis(model, CountingEvaluator(), counts)
    patterns = make_model("dab_detr/dab_detr_digits.py", lambda cfg: cfg.query_source.update(num_patterns=3)).eval()
    with pytest.raises(
        ValueError, match=r"counts must be multiples of 3, .* of each of the 10 anchors, got \[30, 10\]"
    ):
        ReductionAnalysis(patterns, CountingEvaluator(), [30, 10])
    with pytest.raises(ValueError, match="kept must be one of first, random, best, got 'last'"):
        ReductionAnalysis(model, CountingEvaluator(), kept="last")
    subject = argparse.Namespace(model=model, make_evaluator=None, option=lambda name, default: default)
    with pytest.raises(ValueError, match=r"the config has no dataloader\.evaluator"):
        ReductionAnalysis.of(subject)
    subject = argparse.Namespace(
        model=model, make_evaluator=AllImages, option=lambda name, default: {"num": 3}.get(name)
    )
    with pytest.raises(ValueError, match="AllImages scores all images of the dataset: leave out --num"):
        ReductionAnalysis.of(subject)
    analysis = observed(model, ReductionAnalysis(model, AllImages(), [1]))
    with pytest.raises(ValueError, match="AllImages gave no AP of boxes"):
        analysis.figures()
    instances = Instances((64, 96), pred_boxes=Boxes(torch.zeros(0, 4)))
    with pytest.raises(ValueError, match="the model was not called with the image"):
        ReductionAnalysis(model, CountingEvaluator()).observe(make_input(64, 96), instances)
