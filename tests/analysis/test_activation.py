"""Activation of queries: Gini coefficient and Lorenz curve by hand, counting, patterns, the tool."""

import builtins
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrx.analysis.activation import ActivationAnalysis, gini, gini_table, lorenz
from detrx.cli import analyze_queries
from detrx.d2.structures import Boxes, Instances
from detrx.modeling import DetectionTransformer
from tests.modeling.small import make_input, make_model

PATTERNS = "paq_detr/paq_deformable_detr_patterns_digits.py"
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


def detections(*rows: tuple[int, int, float]) -> Instances:
    """From rows of query, class and score."""
    queries, classes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Instances(
        (64, 64),
        pred_boxes=Boxes(torch.zeros(len(rows), 4)),
        pred_queries=torch.tensor(queries, dtype=torch.long),
        pred_classes=torch.tensor(classes, dtype=torch.long),
        scores=torch.tensor(scores),
    )


@torch.no_grad()
def observe(analysis: ActivationAnalysis, model: DetectionTransformer, *images: Instances) -> list[torch.Tensor]:
    """Returns the weights of the patterns for each image, if there are any."""
    weights = []
    for number, instances in enumerate(images):
        inputs = make_input(64, 64 + 32 * (number % 2), image_id=100 + number)
        model([inputs])
        analysis.observe(inputs, instances)
        if analysis.has_patterns:
            weights.append(model.query_source.content.generator(model.encode(model.preprocess([inputs])))[0])
            analysis.weights.clear()
    return weights


def test_counting():
    """A query counts once per image, whatever it is confident of; classes beyond the known names have numbers."""
    model = make_model(PLAIN).eval()
    analysis = ActivationAnalysis(model, ["zero", "one"], score_threshold=0.5)
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
    assert figures["gini"] == pytest.approx(gini([2, 1] + 8 * [0])) and "patterns" not in figures
    assert figures["lorenz"][-1] == [1.0, 1.0]


def test_every_query_of_a_detector_is_counted():
    """Also where there is one for every pair of anchor and content."""

    def change(cfg) -> None:
        cfg.query_source.num_patterns = 3

    model = make_model("dab_detr/dab_detr_digits.py", change).eval()
    analysis = ActivationAnalysis(model, [])
    observe(analysis, model, detections((29, 0, 0.9)))
    assert analysis.figures()["counts"] == 29 * [0] + [1]


def test_usage_of_patterns_by_hand(tmp_path: Path):
    model = make_model(PATTERNS).eval()
    analysis = ActivationAnalysis(model, ["zero", "one"], score_threshold=0.5)
    weights = observe(
        analysis,
        model,
        detections((3, 0, 0.9), (4, 0, 0.9), (5, 1, 0.7)),
        detections((3, 0, 0.9)),
        detections(),
        detections((2, 5, 0.9)),
    )
    patterns = analysis.figures()["patterns"]
    assert {name: each["detections"] for name, each in patterns["usage"].items()} == {"zero": 3, "one": 1, "5": 1}
    expected = (weights[0][3] + weights[0][4] + weights[1][3]) / 3
    torch.testing.assert_close(torch.tensor(patterns["usage"]["zero"]["weights"]), expected, check_dtype=False)
    assert [(each["image_id"], each["class"]) for each in patterns["embedding"]] == [
        *((100, "zero"), (101, "zero"), (102, None), (103, "5")),
    ]
    assert all(math.isfinite(each["x"] + each["y"]) for each in patterns["embedding"])
    torch.testing.assert_close(torch.tensor(np.stack(analysis.of_images)), torch.stack(weights).mean(1))

    text = analysis.write(tmp_path)
    assert "4 of 10 queries" in text and "no picture" not in text
    assert json.loads((tmp_path / "activation.json").read_text()) == analysis.figures()
    for picture in ("activation", "patterns", "embedding"):
        image = Image.open(tmp_path / f"{picture}.png")
        assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_nothing_to_draw_is_said(tmp_path: Path):
    model = make_model(PATTERNS).eval()
    analysis = ActivationAnalysis(model, [])
    with pytest.raises(ValueError, match="the dataset has no images"):
        analysis.write(tmp_path)
    observe(analysis, model, detections())
    text = analysis.write(tmp_path)
    assert "Gini coefficient: undefined" in text
    assert "usage: no confident detection" in text and "embedding: fewer than 4 different images" in text
    assert {path.name for path in tmp_path.iterdir()} == {"activation.json", "activation.png"}
    assert json.loads((tmp_path / "activation.json").read_text())["gini"] is None


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        ActivationAnalysis(make_model(PATTERNS), [])
    assert not ActivationAnalysis(make_model(PLAIN), []).has_patterns


def test_table_of_a_study(tmp_path: Path):
    table = gini_table({"plain": {1: 0.9, 2: 0.8}, "quiet": {1: float("nan")}}, tmp_path)
    assert "| plain | 0.850 ± 0.071 | 0.900, 0.800 |" in table and "| quiet | nan | nan |" in table
    assert json.loads((tmp_path / "gini.json").read_text()) == {"plain": {"1": 0.9, "2": 0.8}, "quiet": {"1": None}}


@pytest.fixture
def digits(tmp_path: Path) -> str:
    """A dataset of five images, registered."""
    from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances

    images = []
    for number in range(1, 6):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
    categories = [{"id": i, "name": f"digit {i}"} for i in range(10)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    register_coco_instances("detrx_test_queries", {}, str(path), str(tmp_path))
    yield "detrx_test_queries"
    DatasetCatalog.remove("detrx_test_queries")
    MetadataCatalog.remove("detrx_test_queries")


def test_tool_on_a_study(tmp_path: Path, digits: str, capsys: pytest.CaptureFixture):
    """From the runs of a study to pictures and the table."""
    from detrx import model_zoo
    from detrx.d2.config import instantiate

    config, plain = (model_zoo.get_config_file(name) for name in (PATTERNS, PLAIN))
    study = tmp_path / "study.yaml"
    study.write_text(
        f"title: t\ndescription: d\nseeds: [1]\noverrides: [model.query_source.num_queries=10]\n"
        f"variants: {{plain: {{config: {plain}}}, patterns: {{config: {config}}}}}\n"
    )
    for name, file in (("plain", plain), ("patterns", config)):
        cfg = model_zoo.LazyConfig.load(file).model
        cfg.query_source.num_queries = 10
        folder = tmp_path / "runs" / name / "seed1"
        folder.mkdir(parents=True)
        torch.save({"model": instantiate(cfg).state_dict()}, folder / "model_final.pth")
    output = tmp_path / "queries"
    arguments = [
        "--activation",
        "--study",
        study,
        "--weights",
        tmp_path / "runs",
        "--output",
        output,
        "--dataset",
        digits,
    ]
    analyze_queries.main([str(each) for each in (*arguments, "--score-threshold", 0.0, "--device", "cpu")])
    assert "| patterns | " in capsys.readouterr().out
    assert set(json.loads((output / "gini.json").read_text())) == {"plain", "patterns"}
    assert {path.name for path in (output / "patterns" / "seed1").iterdir()} == {
        *("activation.json", "activation.png", "patterns.png", "embedding.png"),
    }
    usage = json.loads((output / "patterns" / "seed1" / "activation.json").read_text())["patterns"]["usage"]
    assert all(name.startswith("digit ") for name in usage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "c", "--weights", "w"], "say what to analyse"),
        (["--weights", "w", "--activation"], "one of the arguments --config-file --study is required"),
        (["--study", "s", "--weights", "w", "--activation", "--opts", "a=1"], "a study has its overrides in its file"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        analyze_queries.main(arguments)
    assert message in capsys.readouterr().err
