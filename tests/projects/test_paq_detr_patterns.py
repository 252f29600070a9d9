"""The use of patterns: weights by class and by image, by hand."""

import builtins
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrx.projects.paq_detr.analysis import PatternsAnalysis
from tests.analysis.hand_made_detections import detections, observe
from tests.modeling.small import make_model

PATTERNS = "paq_detr/paq_deformable_detr_patterns_digits.py"
PLAIN = "deformable_detr/deformable_detr_digits.py"


def test_usage_of_patterns_by_hand(tmp_path: Path):
    model = make_model(PATTERNS).eval()
    analysis = PatternsAnalysis(model, ["zero", "one"], score_threshold=0.5)
    inputs = observe(
        analysis,
        model,
        detections((3, 0, 0.9), (4, 0, 0.9), (5, 1, 0.7)),
        detections((3, 0, 0.9)),
        detections(),
        detections((2, 5, 0.9)),
    )
    with torch.no_grad():
        encoded = [model.encode(model.preprocess([each])) for each in inputs]
        weights = [model.query_source.content.generator(memory)[0] for memory in encoded]
    patterns = analysis.figures()
    assert {name: each["detections"] for name, each in patterns["usage"].items()} == {"zero": 3, "one": 1, "5": 1}
    expected = (weights[0][3] + weights[0][4] + weights[1][3]) / 3
    torch.testing.assert_close(torch.tensor(patterns["usage"]["zero"]["weights"]), expected, check_dtype=False)
    assert [(each["image_id"], each["class"]) for each in patterns["embedding"]] == [
        *((100, "zero"), (101, "zero"), (102, None), (103, "5")),
    ]
    assert all(math.isfinite(each["x"] + each["y"]) for each in patterns["embedding"])
    torch.testing.assert_close(torch.tensor(np.stack(analysis.of_images)), torch.stack(weights).mean(1))
    of_queries = [(each["image_id"], each["query"], each["class"]) for each in patterns["query_embedding"]]
    assert of_queries == [(100, 3, "zero"), (100, 4, "zero"), (100, 5, "one"), (101, 3, "zero"), (103, 2, "5")]
    expected = torch.stack([weights[0][3], weights[0][4], weights[0][5], weights[1][3], weights[3][2]])
    torch.testing.assert_close(torch.tensor(np.stack(analysis.of_queries)), expected)

    text = analysis.write(tmp_path)
    assert "patterns of 5 detections in 4 images" in text and "not drawn" not in text
    assert json.loads((tmp_path / "patterns.json").read_text()) == patterns
    for picture in ("patterns", "embedding", "query_embedding"):
        image = Image.open(tmp_path / f"{picture}.png")
        assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_queries_of_the_first_detections_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("detrx.projects.paq_detr.analysis.MOST_QUERIES", 3)
    model = make_model(PATTERNS).eval()
    analysis = PatternsAnalysis(model, ["zero"])
    observe(analysis, model, detections((3, 0, 0.9), (4, 0, 0.9)), detections((5, 0, 0.9), (6, 0, 0.9)))
    assert [query for _, query, _ in analysis.query_labels] == [3, 4, 5]
    assert analysis.figures()["usage"]["zero"]["detections"] == 4


def test_nothing_to_draw_is_said(tmp_path: Path):
    model = make_model(PATTERNS).eval()
    analysis = PatternsAnalysis(model, [])
    with pytest.raises(ValueError, match="the dataset has no images"):
        analysis.write(tmp_path)
    observe(analysis, model, detections())
    text = analysis.write(tmp_path)
    assert "patterns.png is not drawn: there is no confident detection" in text
    assert "embedding.png is not drawn: there are fewer than 4 different images" in text
    assert "query_embedding.png is not drawn: there are fewer than 4 different queries of detections" in text
    assert {path.name for path in tmp_path.iterdir()} == {"patterns.json"}


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        PatternsAnalysis(make_model(PATTERNS), [])


def test_a_detector_without_patterns():
    assert not PatternsAnalysis.applies_to(make_model(PLAIN))
    with pytest.raises(ValueError, match="this model has no pattern queries"):
        PatternsAnalysis(make_model(PLAIN), [])
