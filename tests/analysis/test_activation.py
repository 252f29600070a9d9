"""Activation of queries: Gini coefficient and Lorenz curve by hand, and counting."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrx.analysis.activation import ActivationAnalysis, gini, gini_table, lorenz
from tests.analysis.hand_made_detections import detections, observe
from tests.modeling.small import make_model

PLAIN = "deformable_detr/deformable_detr_digits.py"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([3, 3, 3], 0.0), ([0, 0, 0, 8], 0.75), ([1, 3], 0.25), ([2, 0, 1], 4 / 9), ([5], 0.0)],
)
def test_gini_by_hand(counts: list[int], expected: float):
    """Half of the mean difference of all pairs, relative to the mean."""
    pairs = np.abs(np.subtract.outer(counts, counts)).mean() / (2 * np.mean(counts))
    assert gini(counts) == pytest.approx(expected) == pytest.approx(pairs)


def test_lorenz_by_hand():
    x, y = lorenz([3, 0, 1]).T
    assert x.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1]) and y.tolist() == pytest.approx([0, 0, 0.25, 1])


def test_gini_is_twice_the_area_above_the_lorenz_curve():
    counts = [4, 0, 0, 1, 2, 9]
    x, y = lorenz(counts).T
    assert gini(counts) == pytest.approx(1 - 2 * np.trapezoid(y, x))


def test_no_detections():
    assert math.isnan(gini([0, 0])) and lorenz([0, 0])[:, 1].tolist() == [0, 0, 0]


def test_counting():
    """A query counts once per image, whatever it is confident of."""
    model = make_model(PLAIN).eval()
    analysis = ActivationAnalysis(model, score_threshold=0.5)
    observe(
        analysis,
        model,
        detections((3, 0, 0.9), (3, 1, 0.8), (7, 1, 0.5), (8, 1, 0.49)),
        detections((3, 0, 0.6)),
        detections(),
    )
    figures = analysis.figures()
    assert figures["counts"] == [0, 0, 0, 2, 0, 0, 0, 1, 0, 0]
    assert (figures["images"], figures["queries"], figures["detections"], figures["active_queries"]) == (3, 10, 4, 2)
    assert figures["gini"] == pytest.approx(gini([2, 1] + 8 * [0]))
    assert figures["lorenz"][-1] == [1.0, 1.0]


def test_every_query_of_a_detector_is_counted():
    """Also where there is one for every pair of anchor and content."""

    def change(cfg) -> None:
        cfg.query_source.num_patterns = 3

    model = make_model("dab_detr/dab_detr_digits.py", change).eval()
    analysis = ActivationAnalysis(model)
    observe(analysis, model, detections((29, 0, 0.9)))
    assert analysis.figures()["counts"] == 29 * [0] + [1]


def test_what_is_written(tmp_path: Path):
    model = make_model(PLAIN).eval()
    analysis = ActivationAnalysis(model)
    with pytest.raises(ValueError, match="the dataset has no images"):
        analysis.write(tmp_path)
    observe(analysis, model, detections())
    assert "Gini coefficient: undefined" in analysis.write(tmp_path)
    assert json.loads((tmp_path / "activation.json").read_text())["gini"] is None
    observe(analysis, model, detections((3, 0, 0.9), (4, 0, 0.9)))
    assert "2 of 10 queries" in analysis.write(tmp_path)
    assert json.loads((tmp_path / "activation.json").read_text()) == analysis.figures()
    assert analysis.scalars() == {"gini/activation": pytest.approx(0.8)}, "2 of 10 have all"
    assert {path.name for path in tmp_path.iterdir()} == {"activation.json", "activation.png"}
    image = Image.open(tmp_path / "activation.png")
    assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_table_of_a_study(tmp_path: Path):
    table = gini_table({"plain": {1: 0.9, 2: 0.8}, "quiet": {1: float("nan")}}, tmp_path)
    assert "| plain | 0.850 ± 0.071 | 0.900, 0.800 |" in table and "| quiet | nan | nan |" in table
    assert json.loads((tmp_path / "gini.json").read_text()) == {"plain": {"1": 0.9, "2": 0.8}, "quiet": {"1": None}}
