"""docs/add_a_method.md: its method is written, tested and trained as the page says, in a copy of the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, commands, write_files

PAGE = "add_a_method.md"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "detrx", "projects", "tools", "tests/integration"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(write_files(PAGE, folder)) == 3
    return folder


def run(checkout: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "DETECTRON2_DATASETS": str(checkout / "datasets")}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_the_tests_of_the_page_pass(checkout: Path):
    output = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/projects/test_jittered.py")
    assert "3 passed" in output


def test_the_config_of_the_page_builds_the_method(checkout: Path):
    code = (
        "from detrx import model_zoo; from detrx.d2.config import instantiate; "
        "model = instantiate(model_zoo.get_config('jittered/jittered_deformable_detr_digits.py').model); "
        "print(type(model.methods[0]).__name__, model.methods[0].amount)"
    )
    assert run(checkout, "-c", code).splitlines()[-1] == "JitteredReferences 0.1"


def test_the_command_of_the_page_trains_it(checkout: Path):
    (command,) = commands(PAGE)
    assert command[0] == "python" and command[2] == "--config-file"
    command[3] = "tests/integration/tiny_digits.py"
    run(checkout, *command[1:], "train.max_iter=2", "train.eval_period=0", "train.output_dir=output")
    assert '"loss_bbox_jittered"' in (checkout / "output" / "metrics.json").read_text()
