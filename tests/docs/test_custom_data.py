"""docs/custom_data.md: its commands run as they stand, one after the other, with a training of a few iterations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, blocks, commands, write_files

PAGE = "custom_data.md"
# What a test cannot wait for. Later arguments win.
SHORTER = {"train.output_dir": ["train.max_iter=6", "train.log_period=1", "train.device=cpu"]}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tools and configs of the checkout, in which all commands of the page have run."""
    folder = tmp_path_factory.mktemp("custom_data")
    for name in ("tools", "configs", "projects"):
        (folder / name).symlink_to(ROOT / name)
    (script,) = write_files(PAGE, folder)
    script.write_text(script.read_text().replace('("train", 400), ("val", 60)', '("train", 24), ("val", 6)'))
    for command in commands(PAGE):
        assert command[0] == "python"
        shorter = [more for key, more in SHORTER.items() if any(word.startswith(f"{key}=") for word in command)]
        run(folder, *command[1:], *(word for more in shorter for word in more))
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, f"{arguments}\n{result.stdout}"
    return result.stdout


def test_the_commands_leave_what_the_page_says(workplace: Path):
    output = workplace / "output" / "shapes"
    for name in ("data.png", "model_final.pth", "config.yaml", "drawn/contact_sheet.png", "model.onnx"):
        assert (output / name).stat().st_size > 0
    assert "<html" in (output / "report.html").read_text()
    assert isinstance(json.loads((output / "inference" / "coco_instances_results.json").read_text()), list)


def test_the_model_has_the_classes_of_the_data(workplace: Path):
    losses = [json.loads(line) for line in (workplace / "output/shapes/metrics.json").read_text().splitlines()]
    assert {"bbox/AP-circle", "bbox/AP-square", "bbox/AP-triangle"} <= losses[-1].keys() | losses[-2].keys()


def test_the_python_of_the_page(workplace: Path):
    (code,) = [code for code in blocks(PAGE, "python") if "Predictor" in code]
    assert "'names'" in run(workplace, "-c", code)
    assert (workplace / "output" / "shapes" / "first.png").stat().st_size > 0
