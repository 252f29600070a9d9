import json
import sys

import pytest
import torch

from detrx.cli import export_model as tool
from detrx.d2.config import instantiate
from detrx.engine.config import load_config
from detrx.model_zoo import config_root

CONFIG = str(config_root() / "detr/detr_digits.py")
SMALL = ["model.decoder.num_layers=1"]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights" / "model.pth"
    path.parent.mkdir()
    torch.save({"model": instantiate(load_config(CONFIG, SMALL).model).state_dict()}, path)
    return str(path)


def run_tool(weights, output, *more):
    tool.main(["--config-file", CONFIG, "--weights", weights, "--size", "64", "96", "--output", str(output), *more])


def test_a_program_is_written_and_compared(tmp_path, weights, capsys, monkeypatch):
    file = tmp_path / "new" / "model.pt2"
    run_tool(weights, file, "--input-dtype", "float32", *SMALL)
    printed = capsys.readouterr().out
    assert "largest difference to the detector" in printed and f"exported: {file}" in printed
    assert [path.name for path in file.parent.iterdir()] == ["model.pt2"]
    extra = {"metadata.json": ""}
    boxes, scores, labels = torch.export.load(file, extra_files=extra).module()(torch.rand(1, 3, 64, 96) * 255)
    assert boxes.shape == (1, scores.shape[1], 4) and labels.dtype == torch.int64
    metadata = json.loads(extra["metadata.json"])
    assert len(json.loads(metadata["classes"])) == 10
    assert metadata["config"] == "detr_digits.py"
    assert metadata["input"] == "images (B, 3, H, W) float32, RGB in 0..255"

    file.write_text("an older one")
    compare = tool.check_same_detections
    monkeypatch.setattr(tool, "check_same_detections", lambda *args, tolerance: compare(*args, tolerance=-1))
    with pytest.raises(SystemExit, match=r"error: the exported detections differ .* more than -1; the file was not"):
        run_tool(weights, file, *SMALL)
    assert file.read_text() == "an older one" and len(list(file.parent.iterdir())) == 1


def test_missing_packages_are_named(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"error: export to ONNX needs onnx and onnxscript, .* pip install onnx onnx"):
        run_tool("nowhere.pth", tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "model.pth"], "--output must end in .pt2 or .onnx, got model.pth"),
        (["--output", "model.pt2", "--format", "onnx"], "--output must end in .onnx, got model.pt2"),
        (["--output", "model.onnx", "--keep-operators"], "are for --format torch"),
        (["--output", "model.onnx", "--size", "0", "64"], "--size: must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--config-file", CONFIG, "--weights", "model.pth", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
