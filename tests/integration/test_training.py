"""A detector of the project trained, evaluated and used by the real tools, with either provider."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from detrx.evaluation import evaluate_file

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "tests/integration/tiny_digits.py"
RESULTS = "inference/coco_instances_results.json"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


def run_tool(name: str, *arguments: str, datasets: Path, provider: str = "auto", launcher: Sequence[str] = ()) -> str:
    """Run a tool as a user would, `launcher` being the options of Python before it; returns what it printed."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "DETRX_D2": provider}
    result = subprocess.run(
        [sys.executable, *launcher, f"tools/{name}", "--config-file", CONFIG, *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "time" not in k and "seconds" not in k} for line in lines]


def train(folder: Path, datasets: Path, provider: str = "auto") -> tuple[list[dict[str, float]], str]:
    output = run_tool("lazyconfig_train_net.py", f"train.output_dir={folder}", datasets=datasets, provider=provider)
    return metrics(folder), output


def test_train_evaluate_and_draw(tmp_path: Path, datasets: Path):
    lines, output = train(tmp_path, datasets)
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert len(losses) == 6 and all(loss > 0 for loss in losses)
    assert any("bbox/AP" in line for line in lines) and "AP50" in output

    weights = tmp_path / "model_final.pth"
    evaluated = run_tool(
        "lazyconfig_train_net.py", "--eval-only", f"train.init_checkpoint={weights}",
        f"train.output_dir={tmp_path / 'eval'}", datasets=datasets,
    )  # fmt: skip
    assert "AP50" in evaluated
    scored = [json.loads((folder / RESULTS).read_text()) for folder in (tmp_path, tmp_path / "eval")]
    assert len(scored[0]) == 8 * 100 and scored[0] == scored[1]
    assert {each["category_id"] for each in scored[0]} <= set(range(1, 11))
    saved = evaluate_file(tmp_path / RESULTS, datasets / "tiny_digits/annotations/val.json")
    logged = {name[5:]: value for name, value in lines[-1].items() if re.fullmatch(r"bbox/AP[a-z\d]*", name)}
    assert saved["AP"] == pytest.approx(logged, abs=1e-6, nan_ok=True) and len(logged) == 6
    drawn = tmp_path / "drawn"
    run_tool(
        "demo.py", "--weights", str(weights), "--dataset", "tiny_digits_val", "--num", "3", "--output", str(drawn),
        "--score-threshold", "0.0", datasets=datasets,
    )  # fmt: skip
    assert len(list(drawn.glob("*.png"))) == 3
    detections = json.loads((drawn / "detections.json").read_text())
    assert len({each["image_id"] for each in detections}) == 3


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not installed")
def test_both_providers_give_the_same_losses_and_scores(tmp_path: Path, datasets: Path):
    embedded, _ = train(tmp_path / "embedded", datasets, "embedded")
    detectron2, _ = train(tmp_path / "detectron2", datasets, "detectron2")
    assert len(embedded) == len(detectron2)
    for ours, theirs in zip(embedded, detectron2, strict=True):
        losses = [name for name in ours if not name.startswith("bbox/")]
        assert [ours[name] for name in losses] == [theirs[name] for name in losses]
        assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)  # AP: Detectron2 sums in another order


def test_two_processes_train_mr_detr(tmp_path: Path, datasets: Path):
    """Every parameter of every process has a gradient in every step: DistributedDataParallel looks for no others."""
    run_tool(
        "lazyconfig_train_net.py", "model.methods=[{_target_: detrx.projects.mr_detr.MrDETR}]", "train.eval_period=0",
        f"train.output_dir={tmp_path}", datasets=datasets,
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    )  # fmt: skip
    lines = [line for line in metrics(tmp_path) if "total_loss" in line]
    assert len(lines) == 6
    assert all(math.isfinite(line[key]) for line in lines for key in ("loss_class_group_2", "loss_class_sep_2"))


def test_resume_in_the_middle_of_the_epoch_scheme(tmp_path: Path, datasets: Path):
    """The iteration after the resume, the last with one-to-many matching, and those after it give the same losses."""
    options = [
        "model.methods=[{_target_: detrx.projects.h_detr.HybridEpoch, max_iter: 6, rho: 0.5, copies: 3}]",
        "train.eval_period=0", "train.checkpointer.period=2",
    ]  # fmt: skip
    whole, resumed = train_whole_and_resumed(tmp_path, datasets, options)
    assert [line["iteration"] for line in whole[:2]] == [0, 1]
    assert resumed == whole[1:]


def train_whole_and_resumed(folder: Path, datasets: Path, options: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """Metrics of a training, in `folder`/whole, and of one that continues at its checkpoint of iteration 1.

    What is smoothed is written again for the last iteration before it.
    """
    whole, resumed = folder / "whole", folder / "resumed"
    run_tool("lazyconfig_train_net.py", *options, f"train.output_dir={whole}", datasets=datasets)
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    run_tool("lazyconfig_train_net.py", "--resume", *options, f"train.output_dir={resumed}", datasets=datasets)
    return metrics(whole), metrics(resumed)


def test_distillation_from_a_trained_teacher(tmp_path: Path, datasets: Path):
    """The averaged weights, too, begin as the teacher's; a resumed training does not begin with them again."""
    train(tmp_path / "teacher", datasets)
    teacher = tmp_path / "teacher" / "model_final.pth"
    options = [
        f"model.methods=[{{_target_: detrx.projects.d3etr.Distillation, teacher: {CONFIG}, checkpoint: {teacher}, "
        "losses: [prediction, self_attention]}]",
        "train.eval_period=0", "train.checkpointer.period=2", "train.ema.enabled=True", "train.ema.decay=0.99",
    ]  # fmt: skip
    whole, resumed = train_whole_and_resumed(tmp_path, datasets, options)
    lines = [line for line in whole if "total_loss" in line]
    assert len(lines) == 6
    assert all(line[f"loss_distill_{key}"] > 0 for line in lines for key in ("bbox", "self_attn_teacher"))
    assert resumed == whole[1:]
    taught = torch.load(teacher, weights_only=True)
    expected = taught["ema"]["model"] if "ema" in taught else taught["model"]
    found = torch.load(tmp_path / "whole" / "model_0000001.pth", weights_only=True)["ema"]["model"]
    inherited = [key for key in found if key.startswith(("encoder.", "decoder."))]
    assert inherited and all(torch.allclose(found[key], expected[key], atol=1e-3) for key in inherited)
