"""What `--resume` makes of settings that have changed, and whose files a folder has."""

import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
import yaml


@pytest.fixture(scope="session")
def killed(tmp_path_factory):
    """A run that was killed in iteration 13; its last checkpoint is of iteration 9."""
    from .conftest import Script

    script = Script(tmp_path_factory.mktemp("killed"))
    run = script("train.best_metric=toy/AP", TOY_KILL_AT=13)
    assert run.code == -signal.SIGKILL, run.output
    return script


@pytest.fixture
def continued(script, killed):
    """A copy of it, to be resumed."""
    shutil.copytree(killed.folder, script.folder, dirs_exist_ok=True)
    return script


def final(script):
    return torch.load(script.folder / "model_final.pth", weights_only=True)


def groups(script):
    return final(script)["trainer"]["optimizer"]["param_groups"]


def changes(output):
    """The lines about settings that `--resume` has changed, as dict."""
    lines = re.findall(r"--resume: .*: ([\w.]+): (.+) -> (.+)$", output, re.MULTILINE)
    return {key: (before, after) for key, before, after in lines if key != "train.output_dir"}


COUNTS = {
    "lr": ("optimizer.lr=2e-3", ("0.01", "0.002"), lambda g: g["initial_lr"] in (2e-3, 2e-4)),
    "weight decay": ("optimizer.weight_decay=0.5", ("0.0001", "0.5"), lambda g: g["weight_decay"] == 0.5),
    "betas": ("optimizer.betas=[0.5,0.9]", ("[0.9, 0.999]", "[0.5, 0.9]"), lambda g: list(g["betas"]) == [0.5, 0.9]),
    "eps": ("optimizer.eps=1e-3", ("(not set)", "0.001"), lambda g: g["eps"] == 1e-3),
    "fused": ("optimizer.fused=null", ("True", "None"), lambda g: not g["fused"]),
    "clipping": ("train.clip_grad.max_norm=1e-6", ("1.0", "1e-06"), None),
    "no clipping": ("train.clip_grad.enabled=false", ("True", "False"), None),
    "precision": ("train.amp.enabled=true", ("False", "True"), None),
    "decay of the average": ("train.ema.decay=0.5", ("0.9", "0.5"), None),
    "accumulation": ("train.accumulate=2", ("1", "2"), None),
    "batch size": ("dataloader.train.total_batch_size=8", ("4", "8"), None),
    "data": ("dataloader.train.dataset.size=11", ("33", "11"), None),
    "augmentation": ("dataloader.train.mapper.noise=3", ("0.1", "3"), None),
    "model": ("model.dropout=0.7", ("(not set)", "0.7"), None),
}


@pytest.mark.parametrize("case", COUNTS)
def test_a_changed_setting_counts_and_is_logged(continued, uninterrupted, case):
    override, (before, after), holds = COUNTS[case]
    key = override.partition("=")[0]
    run = continued("--resume", "train.best_metric=toy/AP", override)
    assert run.code == 0, run.output
    assert changes(run.output) == {key: (before, after)}
    assert yaml.safe_load((continued.folder / "config.yaml").read_text())["train"]["max_iter"] == 24
    if holds is not None:
        assert all(holds(group) for group in groups(continued))
    whole, resumed = uninterrupted.metrics(), continued.metrics()
    assert {i: line for i, line in resumed.items() if i < 9} == {i: line for i, line in whole.items() if i < 9}
    if case != "fused":
        assert resumed != whole, "it makes a difference"


def learning_rates(script):
    return {i: line["lr"] for i, line in script.metrics().items() if "lr" in line}


@pytest.mark.parametrize(
    "override",
    [
        "lr_multiplier.warmup_factor=0.5",
        "lr_multiplier.warmup_length=0.6",
        "lr_multiplier.scheduler.end_value=0.5",
        "lr_multiplier={_target_: fvcore.common.param_scheduler.MultiStepParamScheduler, values: [1, 0.1], "
        "milestones: [15], num_updates: 24}",
        "train.max_iter=30",
        "optimizer.lr=3e-3",
    ],
)
def test_the_schedule_is_that_of_a_run_with_the_new_settings_from_the_start(continued, tmp_path, override):
    whole = type(continued)(tmp_path / "whole")
    whole.folder.mkdir()
    assert whole(override).code == 0
    run = continued("--resume", override)
    assert run.code == 0, run.output
    expected, found = learning_rates(whole), learning_rates(continued)
    assert found.keys() == expected.keys()
    assert {i: lr for i, lr in found.items() if i > 9} == pytest.approx({i: lr for i, lr in expected.items() if i > 9})


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("train.seed=5", 1, "it was trained with seed 1, not 5"),
        ("train.max_iter=5", 2, "is beyond train.max_iter=5"),
        ("optimizer._target_=torch.optim.NAdam", 1, "it was trained with the optimizer AdamW, not NAdam"),
        ("model.width=8", 1, "is from another model"),
        ("train.max_iter=1e3", 2, "train.max_iter=1000.0: expected a whole number"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_changes_no_file(continued, override, code, message):
    config = (continued.folder / "config.yaml").read_text()
    checkpoints = sorted(path.name for path in continued.folder.glob("*.pth"))
    run = continued("--resume", override)
    assert run.code == code, run.output
    (line,) = [line for line in run.output.splitlines() if line.startswith("error")]
    assert message in line and "Traceback" not in run.output
    assert (continued.folder / "config.yaml").read_text() == config
    assert sorted(path.name for path in continued.folder.glob("*.pth")) == checkpoints


def test_nothing_is_logged_if_nothing_has_changed(continued):
    run = continued("--resume", "train.best_metric=toy/AP", "train.max_iter=24")
    assert run.code == 0 and not changes(run.output) and "Optimizer: " not in run.output


def test_another_best_metric_begins_anew(continued):
    run = continued("--resume", "train.best_metric=toy/count")
    assert run.code == 0, run.output
    assert "The best toy/AP does not count" in run.output
    best = final(continued)["trainer"]["hooks"]["BestCheckpoint"]
    assert (best["metric"], best["best_metric"]) == ("toy/count", 13)


def test_an_average_that_is_new_starts_from_the_model(script):
    assert script("train.ema.enabled=false", TOY_KILL_AT=13).code == -signal.SIGKILL
    run = script("--resume", "train.ema.enabled=true")
    assert run.code == 0, run.output
    assert changes(run.output) == {"train.ema.enabled": ("False", "True")} and final(script)["ema"]["updates"] == 14


def test_initial_weights_that_a_resume_ignores_are_told(continued, uninterrupted):
    run = continued("--resume", f"train.init_checkpoint={uninterrupted.folder}/model_final.pth")
    assert run.code == 0 and "train.init_checkpoint has no effect" in run.output


def test_accumulation_continues_with_the_next_batch(continued):
    """Ten batches were trained, so the eleventh comes next, although the steps are now of two."""
    assert continued("--resume", "train.accumulate=2").code == 0
    assert final(continued)["trainer"]["num_batches"] == 10 + 2 * 14


def test_another_number_of_processes_is_told(continued):
    run = continued("--resume", processes=2)
    assert run.code == 0, run.output
    assert "The checkpoint is of a training with 1 processes, this one has 2" in run.output


def test_an_evaluation_leaves_the_training_alone(script):
    options = ("train.max_iter=6", "train.seed=-1")
    assert script(*options, "optimizer.lr=5e-5").code == 0
    names = ("config.yaml", "metrics.json", "last_checkpoint", "model_final.pth")
    before = {name: (script.folder / name).read_bytes() for name in names}
    for source in ("--resume", f"train.init_checkpoint={script.folder}/model_final.pth"):
        run = script("--eval-only", source, "train.seed=-1")
        assert run.code == 0, run.output
    assert {name: (script.folder / name).read_bytes() for name in names} == before
    assert yaml.safe_load((script.folder / "eval_config.yaml").read_text())["optimizer"]["lr"] == 0.01
    assert yaml.safe_load((script.folder / "config.yaml").read_text())["optimizer"]["lr"] == 5e-5
    assert script("--resume", *options).code == 0


def test_a_new_training_sets_the_files_of_an_earlier_one_aside(script):
    assert script("train.max_iter=12").code == 0
    (script.folder / "notes.txt").write_text("mine")
    earlier = {path.name: path.read_bytes() for path in script.folder.iterdir() if path.is_file()}
    run = script("train.max_iter=4")
    assert run.code == 0 and "had the files of an earlier training. They are in" in run.output
    aside = script.folder / "previous-1"
    assert {path.name for path in script.folder.glob("*.pth")} == {"model_final.pth"}
    assert {path.name for path in aside.glob("*.pth")} == {"model_0000004.pth", "model_0000009.pth", "model_final.pth"}
    for name in ("config.yaml", "log.txt", "metrics.json", "last_checkpoint"):
        assert (aside / name).read_bytes() == earlier[name]
    assert (script.folder / "notes.txt").read_text() == "mine" and sorted(script.metrics()) == [1, 3, 4]
    assert (script.folder / "log.txt").read_text().count("Starting training") == 1

    assert script("train.max_iter=4").code == 0
    assert json.loads((script.folder / "previous-2" / "metrics.json").read_text().splitlines()[0])["iteration"] == 1
    run = script("--resume", "train.max_iter=6")
    assert run.code == 0 and "Starting training from iteration 4" in run.output
    assert not (script.folder / "previous-3").exists()


def test_weights_of_an_earlier_training_in_the_same_folder(script):
    assert script("train.max_iter=4").code == 0
    run = script("train.max_iter=4", f"train.init_checkpoint={script.folder}/model_final.pth")
    assert run.code == 0, run.output
    saved = yaml.safe_load((script.folder / "config.yaml").read_text())["train"]["init_checkpoint"]
    assert saved == str(script.folder / "previous-1" / "model_final.pth")


def test_two_trainings_at_once_in_one_folder(script):
    first = script.start("train.max_iter=1000", TOY_SLEEP=0.2)
    deadline = time.monotonic() + 60
    while not (script.folder / "metrics.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    other = type(script)(script.folder / "consoles")
    other.folder.mkdir()
    for arguments in ((), ("--resume",)):
        run = other(*arguments, f"train.output_dir={script.folder}")
        assert run.code == 1, run.output
        assert run.output.splitlines()[-1].startswith(f"error: another training is running in {script.folder}")
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert not (script.folder / "previous-1").exists()
    run = other("--resume", f"train.output_dir={script.folder}", "train.max_iter=6")
    assert run.code == 0, run.output


@pytest.mark.parametrize("name", ["größe (neu), it's", "run.txt", "2024", "a${b"])
def test_folders_of_any_name(script, name):
    folder = script.folder / name
    run = script(f"train.output_dir={folder}", "train.max_iter=4")
    assert run.code == 0, run.output
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth"} <= set(os.listdir(folder))
    run = script(f"train.output_dir={folder}", "train.max_iter=6", "--resume")
    assert run.code == 0 and "Starting training from iteration 4" in run.output
    assert changes(run.output) == {"train.max_iter": ("4", "6")}
