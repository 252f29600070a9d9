"""`tools/analyze_queries.py`: which analyses there are, the runs of a study, arguments."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrx.analysis.queries import query_analyses
from detrx.cli import analyze_queries

PATTERNS = "paq_detr/paq_deformable_detr_patterns_digits.py"
PLAIN = "deformable_detr/deformable_detr_digits.py"
ROUTED = "qr_detr/qr_deformable_detr_digits.py"


def test_methods_offer_their_analyses():
    assert next(iter(query_analyses())) == "activation"
    assert {"activation", "supervision", "pairs", "patterns", "reduction", "routing"} == set(query_analyses())


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
    annotations = [
        {"id": i, "image_id": i, "category_id": i, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0} for i in (1, 2)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances("detrx_test_queries", {}, str(path), str(tmp_path))
    yield "detrx_test_queries"
    DatasetCatalog.remove("detrx_test_queries")
    MetadataCatalog.remove("detrx_test_queries")


def test_tool_on_a_study(tmp_path: Path, digits: str, capsys: pytest.CaptureFixture):
    """From the runs of a study to pictures and the table."""
    from detrx import model_zoo
    from detrx.d2.config import LazyConfig, instantiate

    config, plain = (model_zoo.get_config_file(name) for name in (PATTERNS, PLAIN))
    study = tmp_path / "study.yaml"
    study.write_text(
        f"title: t\ndescription: d\nseeds: [1]\noverrides: [model.query_source.num_queries=10]\n"
        f"variants: {{plain: {{config: {plain}}}, patterns: {{config: {config}}}}}\n"
    )
    for name, file in (("plain", plain), ("patterns", config)):
        cfg = LazyConfig.load(file).model
        cfg.query_source.num_queries = 10
        folder = tmp_path / "runs" / name / "seed1"
        folder.mkdir(parents=True)
        torch.save({"model": instantiate(cfg).state_dict()}, folder / "model_final.pth")
    output = tmp_path / "queries"
    arguments = ["--activation", "--supervision", "--study", study, "--weights", tmp_path / "runs", "--output", output]
    arguments += ["--dataset", digits, "--train-dataset", digits, "--score-threshold", 0.0, "--device", "cpu"]
    analyze_queries.main([str(each) for each in arguments])
    assert "| patterns | " in capsys.readouterr().out
    assert set(json.loads((output / "gini.json").read_text())) == {"plain", "patterns"}
    folder = output / "patterns" / "seed1"
    written = {f"{name}.{kind}" for name in ("activation", "supervision") for kind in ("json", "png")}
    assert {path.name for path in folder.iterdir()} == written
    figures = json.loads((folder / "supervision.json").read_text())
    assert (figures["images"], figures["boxes"]) == (2, 2), "images with annotations"
    assert sum(figures["positives_last_layer"]["sums"]) == 2
    tables = {name: json.loads((output / f"gini_{name}.json").read_text()) for name in ("positives", "gradient")}
    assert tables["positives"]["patterns"]["1"] == pytest.approx(figures["positives"]["gini"])

    weights = tmp_path / "runs" / "patterns" / "seed1" / "model_final.pth"
    arguments = ["--patterns", "--config-file", config, "--weights", weights, "--output", folder, "--dataset", digits]
    options = ["--score-threshold", 0.0, "--device", "cpu", "--opts", "model.query_source.num_queries=10"]
    analyze_queries.main([str(each) for each in (*arguments, *options)])
    assert {"patterns.json", "patterns.png", "embedding.png"} < {path.name for path in folder.iterdir()}
    usage = json.loads((folder / "patterns.json").read_text())["usage"]
    assert usage and all(name.startswith("digit ") for name in usage)


def test_variants_of_a_study_without_what_is_analysed_are_left_out(
    tmp_path: Path, digits: str, capsys: pytest.CaptureFixture
):
    """And the table of those that have routers."""
    from detrx import model_zoo
    from detrx.d2.config import instantiate

    study, configs = tmp_path / "study.yaml", {"plain": PLAIN, "routed": ROUTED}
    variants = ", ".join(f"{name}: {{config: {config}}}" for name, config in configs.items())
    study.write_text(f"title: t\ndescription: d\nseeds: [1]\nvariants: {{{variants}}}\n")
    for name, config in configs.items():
        folder = tmp_path / "runs" / name / "seed1"
        folder.mkdir(parents=True)
        torch.save({"model": instantiate(model_zoo.get_config(config).model).state_dict()}, folder / "model_final.pth")
    arguments = ["--routing", "--study", study, "--weights", tmp_path / "runs", "--output", tmp_path / "out"]
    options = ["--dataset", digits, "--device", "cpu", "--num", 2, "--cost-images", 1]
    analyze_queries.main([str(each) for each in (*arguments, *options)])
    assert "left out: no analysis applies to this model" in capsys.readouterr().out
    table = (tmp_path / "out" / "routing.md").read_text().splitlines()
    assert len(table) == 3 and table[2].startswith("| routed | ") and "-" not in table[2]


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, digits: str):
    from detrx import model_zoo
    from detrx.d2.config import instantiate

    torch.save({"model": instantiate(model_zoo.get_config(PLAIN).model).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "2.png").write_bytes(b"")
    arguments = ["--activation", "--config-file", PLAIN, "--weights", tmp_path / "model.pth", "--dataset", digits]
    with pytest.raises(SystemExit, match=r"error: image .*2\.png cannot be read: the file is empty$"):
        analyze_queries.main([*map(str, arguments), "--output", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "activation.json").read_text())["images"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "c", "--weights", "w"], "give at least one analysis: --activation"),
        (["--weights", "w", "--activation"], "one of the arguments --config-file --study is required"),
        (
            ["--study", "s", "--weights", "w", "--activation", "--opts", "a=1"],
            "the file of a study contains its overrides",
        ),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        analyze_queries.main(arguments)
    assert message in capsys.readouterr().err
