"""The training script: resume, signals, errors, several processes."""

import math
import os
import re
import signal
import time

import pytest
import torch


def losses(metrics):
    return {iteration: line for iteration, line in metrics.items() if "total_loss" in line}


def model_of(path):
    return torch.load(path, weights_only=True)["model"]


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_continued(script, reference):
    """``script``'s run has left exactly what ``reference`` has."""
    assert script.metrics() == reference.metrics()
    ends = [torch.load(s.folder / "model_final.pth", weights_only=True) for s in (script, reference)]
    assert_same_tensors(ends[0]["model"], ends[1]["model"])
    assert_same_tensors(ends[0]["ema"]["model"], ends[1]["ema"]["model"])
    assert ends[0]["ema"]["updates"] == ends[1]["ema"]["updates"]
    assert torch.equal(ends[0]["trainer"]["rng"][0]["torch"], ends[1]["trainer"]["rng"][0]["torch"])
    assert ends[0]["trainer"]["optimizer"]["param_groups"] == ends[1]["trainer"]["optimizer"]["param_groups"]


def test_a_run_leaves_its_results(uninterrupted):
    files = {path.name for path in uninterrupted.folder.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "model_best.pth", "last_checkpoint"} <= files
    assert [name for name in sorted(files) if name.startswith("model_0")] == ["model_0000014.pth", "model_0000019.pth"]
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert (uninterrupted.folder / "last_checkpoint").read_text() == "model_final.pth"
    metrics = uninterrupted.metrics()
    assert sorted(losses(metrics)) == list(range(1, 24, 2))
    assert [i for i, line in metrics.items() if "toy/AP" in line] == [9, 19, 24]
    console = uninterrupted.console().read_text()
    assert console.count("Detectron2's API comes from: ") == 1
    for part in ("eta: ", "iter: 23", "total_loss: ", "lr: ", "max_mem: ", "copypaste: AP,count"):
        assert part in console


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_run_equals_an_uninterrupted_one(script, uninterrupted, workers):
    options = ["train.best_metric=toy/AP", f"dataloader.train.num_workers={workers}"]
    run = script(*options, TOY_KILL_AT=13)  # the last checkpoint is from iteration 9, the file has lines up to 11
    assert run.code == -signal.SIGKILL
    assert max(script.metrics()) >= 11
    run = script("--resume", *options)
    assert run.code == 0, run.output
    assert "Starting training from iteration 10" in run.output
    assert_continued(script, uninterrupted)
    best = [torch.load(s.folder / "model_best.pth", weights_only=True)["iteration"] for s in (script, uninterrupted)]
    assert best[0] == best[1]


def test_kill_between_checkpoint_and_evaluation_loses_neither(script, uninterrupted):
    run = script("model.fail_in_eval=true")
    assert run.code == -signal.SIGKILL
    assert (script.folder / "last_checkpoint").read_text() == "model_0000009.pth"
    assert 9 not in script.metrics()
    run = script("--resume")
    assert run.code == 0, run.output
    assert_continued(script, uninterrupted)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_saves_a_checkpoint_and_exits(script, uninterrupted, name, code):
    run = script("dataloader.train.num_workers=1", TOY_SIGNAL_AT=6, TOY_SIGNAL=name)
    assert run.code == code, run.output
    assert (script.folder / "last_checkpoint").read_text() == "model_0000006.pth"
    assert "Traceback" not in run.output
    run = script("--resume")
    assert run.code == 0, run.output
    assert_continued(script, uninterrupted)


def test_signal_to_the_process_group_waits_for_the_loading_workers(script):
    options = ("dataloader.train.num_workers=2", "train.accumulate=3", "train.max_iter=1000")
    process = script.start(*options, new_group=True, TOY_SLEEP=0.03)
    deadline = time.monotonic() + 60
    while not (script.folder / "model_0000004.pth").exists():
        assert time.monotonic() < deadline, script.console().read_text()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143, script.console().read_text()
    assert "Traceback" not in script.console().read_text()


def test_second_ctrl_c_exits_at_once(script):
    process = script.start("train.max_iter=1000", TOY_SLEEP=3)
    deadline = time.monotonic() + 60
    while "Starting training" not in (script.console().read_text() if script.console().exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    start = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert time.monotonic() - start < 2.5
    assert not (script.folder / "last_checkpoint").exists()


def test_signal_breaks_an_evaluation_off(script, uninterrupted):
    run = script("model.signal_in_eval=SIGTERM")
    assert run.code == 143, run.output
    assert "aborted" in run.output
    assert 9 not in {i for i, line in script.metrics().items() if "toy/AP" in line}
    assert script("--resume").code == 0
    assert_continued(script, uninterrupted)


def test_evaluation_does_not_change_the_training(script, uninterrupted):
    for options in ((), ("train.ema.evaluate=false",)):
        run = script("train.eval_period=3", *options)
        assert run.code == 0, run.output
        ends = [model_of(s.folder / "model_final.pth") for s in (script, uninterrupted)]
        assert_same_tensors(*ends)


def test_two_processes_train_resume_and_evaluate_as_one(script, tmp_path):
    run = script("train.max_iter=12", processes=2)
    assert run.code == 0, run.output
    whole = script.metrics()
    assert whole[12]["toy/count"] == 13
    for processes in (1, 2):
        options = (f"train.init_checkpoint={tmp_path}/model_final.pth", "dataloader.train.total_batch_size=3")
        evaluation = script("--eval-only", *options, processes=processes)  # to which training batches are nothing
        assert evaluation.code == 0, evaluation.output
        assert f"copypaste: {whole[12]['toy/AP']:.4f},13.0000" in evaluation.output

    (tmp_path / "again").mkdir()
    script.folder = tmp_path / "again"
    run = script("train.max_iter=12", processes=2, TOY_SIGNAL_AT=6, TOY_SIGNAL="SIGTERM")  # one of them gets it
    assert run.code == 143, run.output
    run = script("--resume", "train.max_iter=12", processes=2)
    assert run.code == 0, run.output
    metrics = script.metrics()
    assert {i: metrics[i] for i in whole} == whole


def test_two_processes_agree_that_a_loss_is_not_finite(script):
    """Only one of them has it, and finds out before the next checkpoint."""
    run = script("dataloader.train.mapper.broken=7", "train.log_period=20", "train.seed=3", processes=2)
    assert run.code == 1, run.output
    lines = [line for line in run.output.splitlines() if line.startswith("error")]
    messages = {line.split(": ", 1)[1] for line in lines}
    assert len(lines) == 2 and len(messages) == 1, run.output
    (message,) = messages
    iteration = int(re.match(r"loss is not finite in iteration (\d+): loss_square=", message)[1])
    assert re.search(r"image ids of the batch: \[(7, \d+|\d+, 7)\]", message), "those of the process that has it"
    assert 1 < iteration < 4, "the checkpoint of iteration 4 comes later"
    assert max(losses(script.metrics())) == iteration - 1
    assert not list(script.folder.glob("*.pth"))


@pytest.mark.parametrize("processes", [1, 2])
def test_predictions_that_are_not_finite_are_one_line_in_every_process(script, processes):
    """With two processes, only the second one has them; the first then waits for its gradients in vain."""
    run = script("train.max_iter=12", "train.log_period=20", processes=processes, TOY_DIVERGE_AT=6)
    assert run.code == 1, run.output
    assert "Traceback" not in run.output
    lines = [line for line in run.output.splitlines() if line.startswith("error")]
    assert len(lines) == processes
    assert lines[-1].endswith("iteration 6: predictions are NaN or infinite for image ids [3]")
    assert not (script.folder / "model_final.pth").exists()


def test_two_processes_with_different_losses_are_told(script):
    run = script("train.max_iter=4", processes=2, TOY_LOSS="loss_other")
    assert run.code == 70
    for rank, name in enumerate(("loss_abs", "loss_other")):
        message = f"the processes have different losses in iterations 0 to 1; process {rank} has loss_square, {name}"
        assert message in script.console(rank).read_text()


def test_two_processes_stop_where_their_losses_are_fetched(script):
    options = ("train.log_period=5", "train.max_iter=1000")
    run = script(*options, processes=2, TOY_SIGNAL_AT=6, TOY_SIGNAL="SIGTERM")
    assert run.code == 143, run.output
    assert (script.folder / "last_checkpoint").read_text() == "model_0000009.pth"
    assert sorted(losses(script.metrics())) == [4, 9]


def test_evaluation_in_mixed_precision_is_asked_for(script, uninterrupted):
    checkpoint = f"train.init_checkpoint={uninterrupted.folder}/model_final.pth"
    scores = {}
    for options in ((), ("train.amp.enabled=true",), ("train.amp.evaluate=true",)):
        run = script("--eval-only", checkpoint, *options)
        assert run.code == 0, run.output
        (scores[options],) = re.findall(r"mean of the predictions, unrounded: (\S+)", run.output)
    full, trained_with_it, evaluated_with_it = scores.values()
    assert full == trained_with_it != evaluated_with_it
    assert float(full) == pytest.approx(float(evaluated_with_it), abs=0.1)


def test_eval_only_takes_averaged_weights_unless_told_otherwise(script, uninterrupted):
    final = uninterrupted.folder / "model_final.pth"
    averaged = script("--eval-only", f"train.init_checkpoint={final}")
    assert averaged.code == 0, averaged.output
    assert "averaged (EMA) weights" in averaged.output
    assert f"copypaste: {uninterrupted.metrics()[24]['toy/AP']:.4f}," in averaged.output
    trained = script("--eval-only", f"train.init_checkpoint={final}", "train.ema.evaluate=false")
    assert trained.code == 0
    last_line = [
        line.split("copypaste: ")[1]
        for r in (averaged, trained)
        for line in r.output.splitlines()
        if ",13.0000" in line
    ]
    assert last_line[0] != last_line[1]


def test_new_run_in_a_used_folder_does_not_resume_the_old_one(script):
    assert script("train.max_iter=6").code == 0
    assert script(TOY_KILL_AT=2).code == -signal.SIGKILL
    assert "metrics.json" in os.listdir(script.folder / "previous-1")
    run = script("--resume", "train.max_iter=2")
    assert "there is no checkpoint" in run.output
    assert "Starting training from iteration 0" in run.output


def test_resume_of_a_finished_run_evaluates_again(script, uninterrupted):
    assert script().code == 0
    before = script.metrics()
    assert script("--resume").code == 0
    assert script.metrics() == before


ERRORS = {
    "typo": (["modle.width=3"], 2, "unknown config key 'modle.width'; did you mean model.width"),
    "unknown parameter": (["model.nope=1"], 2, "unknown config key 'model.nope'"),
    "plain dict": (["train.ema.decya=0.5"], 2, "did you mean train.ema.decay"),
    "no assignment": (["train.max_iter"], 2, "override 'train.max_iter' is not of the form key=value"),
    "wrong place": (["train.lr=0.1"], 2, "did you mean optimizer.lr"),
    "amp dtype": (["train.amp.dtype=int8"], 2, "neither bfloat16 nor float16"),
    "accumulate": (["train.accumulate=0"], 2, "train.accumulate=0: expected a whole number, 1 or more"),
    "batch size": (
        ["dataloader.train.total_batch_size=0"],
        2,
        "total_batch_size=0: expected a whole number, 1 or more",
    ),
    "init checkpoint": (["train.init_checkpoint=/nowhere.pth"], 1, "checkpoint /nowhere.pth does not exist"),
    "nothing to evaluate": (["--eval-only"], 2, "--eval-only needs train.init_checkpoint=FILE"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_get_one_line(script, case):
    arguments, code, message = ERRORS[case]
    run = script(*arguments)
    assert run.code == code, run.output
    (line,) = [line for line in run.output.splitlines() if line.startswith("error")]
    assert message in line
    assert "Traceback" not in run.output
    if code == 2 and "--eval-only" not in arguments:
        assert {path.name for path in script.folder.iterdir()} == {"console.0"}  # nothing was written


def test_added_key_and_parameter_of_the_target_are_known(script):
    assert script("+train.mine=1", "model.dropout=0.1", "train.max_iter=2").code == 0


def test_bug_keeps_its_traceback(script):
    run = script("model.width=three")
    assert run.code == 70
    assert "Traceback" in run.output
    assert not [line for line in run.output.splitlines() if line.startswith("error")]


@pytest.mark.parametrize("workers", [0, 1])
def test_non_finite_loss_names_iteration_losses_and_images(script, workers):
    run = script("dataloader.train.mapper.broken=7", f"dataloader.train.num_workers={workers}")
    assert run.code == 1, run.output
    (line,) = [line for line in run.output.splitlines() if line.startswith("error")]
    assert "not finite in iteration" in line
    assert "loss_square=" in line
    assert "7" in line.split("image ids of the batch: [")[1].split("]")[0].replace(",", "").split()
    assert "Traceback" not in run.output


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_check_in_the_loader_is_one_line(script, workers):
    mapper = "dataloader.train.mapper._target_=detrx.data.DetectionMapper"
    run = script(mapper, "~dataloader.train.mapper.noise", f"dataloader.train.num_workers={workers}")
    assert run.code == 2
    run = script("dataloader.train.mapper.missing=true", f"dataloader.train.num_workers={workers}")
    assert run.code == 1, run.output
    (line,) = [line for line in run.output.splitlines() if line.startswith("error")]
    assert line.endswith("image /nowhere/0.png does not exist") or "does not exist" in line
    assert "Traceback" not in run.output


def test_checkpoint_of_another_model(script, uninterrupted):
    assert script("train.max_iter=6").code == 0
    run = script("--resume", "model.width=8")
    assert run.code == 1
    assert "is from another model" in run.output
    assert "of another shape (backbone.bias (16,) instead of (8,)" in run.output
    run = script("--eval-only", "--resume", "model.width=8")
    assert run.code == 1
    assert "is from another model" in run.output
    other = script.folder / "other.pth"
    torch.save({"model": {"something.else": torch.zeros(2)}}, other)
    run = script(f"train.init_checkpoint={other}")
    assert run.code == 1
    assert "1 unexpected (something.else)" in run.output
    run = script(f"train.init_checkpoint={uninterrupted.folder}/model_final.pth", "model.width=8", "train.max_iter=1")
    assert run.code == 0  # the bias of the head fits
    assert "fits the model in part" in run.output


def test_resume_under_other_conditions_is_refused(script):
    assert script("train.max_iter=6").code == 0
    run = script("--resume", "train.seed=5")
    assert run.code == 1
    assert "trained with seed 1, not 5" in run.output
    run = script("--resume", "train.max_iter=3")
    assert run.code == 2
    assert "beyond train.max_iter=3" in run.output


def test_drawn_seed_is_kept_over_a_resume(script):
    assert script("train.seed=-1", TOY_KILL_AT=6).code == -signal.SIGKILL
    run = script("--resume", "train.seed=-1", "train.max_iter=8")
    assert run.code == 0, run.output


def test_mixed_precision_and_accumulation_run(script):
    for options in (["train.amp.enabled=true"], ["train.amp.enabled=true", "train.amp.dtype=float16"]):
        run = script("train.accumulate=2", "train.max_iter=6", *options)
        assert run.code == 0, run.output
        assert all(math.isfinite(line["total_loss"]) for line in losses(script.metrics()).values())
