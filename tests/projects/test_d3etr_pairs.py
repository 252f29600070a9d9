"""Which queries of student and teacher are pairs: figures and picture of the tool."""

import json

import pytest
import torch

from detrx.cli import analyze_queries as tool
from detrx.projects.d3etr.analysis import PairsAnalysis
from tests.modeling.small import make_input
from tests.projects.contract import detector, distillation, switch_on

ORDER = [3, 0, 9, 1, 2, 4, 8, 7, 5, 6]


@torch.no_grad()
def test_tool_finds_the_order_of_the_queries(request, tmp_path, monkeypatch):
    """The student is its teacher, but for the order of its queries, of which some are left out."""
    model = detector("conditional_detr")
    method = distillation(model)
    kept = ORDER[:8]
    model.query_source.pos.weight = torch.nn.Parameter(model.query_source.pos.weight[kept])
    switch_on(model, method)
    model.eval()
    config = str(request.config.rootpath / "projects/d3etr/configs/d3etr_conditional_detr_digits.py")
    monkeypatch.setattr(tool, "get_detection_dataset_dicts", lambda *_, **__: [{"image_id": i} for i in range(3)])
    monkeypatch.setattr(tool, "load_model", lambda *_: model)
    monkeypatch.setattr(tool, "instantiate", lambda _: lambda record: make_input(64, 96))
    tool.main(["--pairs", "--config-file", config, "--weights", "model.pth", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "pairs.json").read_text())
    assert (figures["images"], figures["student_queries"], figures["teacher_queries"]) == (3, 8, 10)
    for layer in figures["layers"]:
        assert layer["partners"] == kept
        assert layer["commonest_partner"] == 1.0
        assert layer["partner_of_equal_place"] == pytest.approx(1 / 8)
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_teacher_or_images(tmp_path):
    model = detector("conditional_detr")
    with pytest.raises(ValueError, match="this model has no teacher"):
        PairsAnalysis(model)
    switch_on(model, distillation(model))
    with pytest.raises(ValueError, match="the dataset has no images"):
        PairsAnalysis(model).write(tmp_path)
    assert not list(tmp_path.iterdir())
