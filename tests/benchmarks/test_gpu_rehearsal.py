"""The whole check of the GPU on a CPU, at sizes where figures mean nothing: no minute on a GPU for a typing error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUBSTITUTES = Path(__file__).with_name("substitutes")
# Rows that a stage has to find, by its tables. The two stages that repeat others for more sizes are tested elsewhere.
ROWS = {
    "smoke": {"launches": 29},
    "tests": {"files": 1},
    "sanitizer": {"tools": 1},
    "speed": {"attention": 8},
    "deformops": {"attention": 8},
    "training": {"memory": 4, "steps": 4},
    "layers": {"decoder": 1, "experts": 2, "routing": 2},
    "inference": {"waits": 1, "inference": 2},
    "studies": {"trainings": 1},
}


@pytest.fixture(scope="module")
def rehearsal(request, tmp_path_factory):
    """Folder of the results, and what was printed; run somewhere else than in the checkout."""
    root, out = request.config.rootpath, tmp_path_factory.mktemp("gpu")
    paths = os.pathsep.join(filter(None, [str(SUBSTITUTES), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(root / "tools" / "gpu_check.py"), "--device", "cpu", "--tiny", "--budget", "500"]
    result = subprocess.run(
        [*command, "--out", str(out), "--stages", *ROWS],
        cwd=out, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr + (out / "log.txt").read_text()
    return out, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", ROWS)
def test_every_stage_finds_something(rehearsal, stage):
    report = json.loads((rehearsal[0] / f"{stage}.json").read_text())
    assert report["status"] == "ok" and report["failures"] == [] and report["machine"]["torch"]
    assert {name: len(rows) for name, rows in report["tables"].items()} == ROWS[stage]
    assert not any("missing" in note for note in report["notes"])


@pytest.mark.slow
def test_figures(rehearsal):
    out, _ = rehearsal
    tables = {stage: json.loads((out / f"{stage}.json").read_text())["tables"] for stage in ROWS}
    assert all(row["of tolerance"] <= 1 for row in tables["smoke"]["launches"])
    for row in tables["speed"]["attention"]:
        assert row["detrx fwd ms"] > 0 and row["grid_sample fwd+bwd ms"] > 0 and row["fwd expected ms"] > 0
    assert all(row["deformops eager fwd ms"] > 0 for row in tables["deformops"]["attention"])
    assert all(row["images/s"] > 0 and row["matching %"] < 100 for row in tables["training"]["steps"])
    assert {row["dtype"] for row in tables["inference"]["inference"]} == {"bfloat16", "float32"}


@pytest.mark.slow
def test_the_summary_is_short_and_says_that_it_was_a_rehearsal(rehearsal):
    out, printed = rehearsal
    assert len(printed) < 11000 and "a rehearsal" in printed and "bars: " in printed
    merged = json.loads((out / "gpu_check.json").read_text())
    assert list(merged["stages"]) == list(ROWS) and len(merged["bars"]) > 5
