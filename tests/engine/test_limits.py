"""Numbers that cannot be meant, as arguments and as settings: one line and exit code 2, and nothing is written."""

import types

import pytest

from detrx.cli import lazyconfig_train_net
from detrx.engine import ConfigError, job, load_config
from detrx.engine.limits import check_job, check_settings

CONFIG = "deformable_detr/deformable_detr_digits"

ARGUMENTS = {
    "--num-gpus=0": "--num-gpus=0: expected 1 or more",
    "--num-gpus=-1": "--num-gpus=-1: expected 1 or more",
    "--num-machines=0": "--num-machines=0: expected 1 or more",
    "--machine-rank=-1": "--machine-rank=-1: expected 0 or more",
    "--machine-rank=1": "--machine-rank=1: expected 0 to 0 with --num-machines=1",
    "--num-machines=2 --dist-url=auto": "--dist-url=auto works on one machine only",
    "--num-gpus=2 --dist-url=elsewhere": "--dist-url=elsewhere: expected auto or a URL",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(arguments, capsys, tmp_path):
    options = [f"train.output_dir={tmp_path / 'out'}", "train.device=cpu"]
    assert lazyconfig_train_net.main(["--config-file", CONFIG, *arguments.split(), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {ARGUMENTS[arguments]}") and not (tmp_path / "out").exists()


def test_number_of_processes_beside_torchrun(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    for number in (1, 2):
        check_job(types.SimpleNamespace(num_gpus=number, num_machines=1, machine_rank=0, dist_url="auto"))
    with pytest.raises(ConfigError, match="--num-gpus=4, but torchrun has started 2 processes"):
        check_job(types.SimpleNamespace(num_gpus=4, num_machines=1, machine_rank=0, dist_url="auto"))


SETTINGS = [
    ("train.max_iter", ["0", "-1", "abc", "1.5", "true", "null"]),
    ("train.log_period", ["0"]),
    ("train.eval_period", ["-1"]),
    ("train.accumulate", ["0", "0.5"]),
    ("train.checkpointer.period", ["0"]),
    ("train.checkpointer.max_to_keep", ["0"]),
    ("train.ema.decay", ["1", "-0.1", "high"]),
    ("train.ema.warmup", ["-1"]),
    ("train.clip_grad.max_norm", ["0", "-1"]),
    ("train.clip_grad.norm_type", ["0"]),
    ("train.seed", ["4294967296", "1.5", "abc"]),
    ("optimizer.lr", ["-1", "inf", "nan"]),
    ("dataloader.train.total_batch_size", ["0", "-4", "3.5"]),
    ("dataloader.train.num_workers", ["-1"]),
    ("dataloader.train.prefetch_factor", ["0"]),
    ("dataloader.test.batch_size", ["0"]),
    ("dataloader.test.num_workers", ["-1"]),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SETTINGS for value in values])
def test_settings(key, value):
    try:
        cfg = load_config(CONFIG, [f"+{key}={value}"])
    except ConfigError as error:  # a word where a number is
        assert key in str(error)
        return
    with pytest.raises(ConfigError, match=rf"^{key}=.+: expected a (whole )?number"):
        check_settings(cfg)


def test_possible_settings_and_processes():
    cfg = load_config(CONFIG, ["train.seed=-1", "train.checkpointer.max_to_keep=null", "train.eval_period=0"])
    check_settings(cfg)
    with pytest.raises(ConfigError, match=r"total_batch_size=.*: expected a multiple of the 7 processes"):
        check_settings(cfg, 7)
    cfg = load_config(CONFIG, ["train.output_dir="])
    with pytest.raises(ConfigError, match=r"train\.output_dir is empty"):
        check_settings(cfg)


def test_more_processes_than_gpus(capsys):
    assert lazyconfig_train_net.main(["--config-file", CONFIG, "--num-gpus=99", "train.device=cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_are_checked_before_processes_are_started(monkeypatch, capsys):
    monkeypatch.setattr(job, "launch", lambda *_, **__: pytest.fail("launched"))
    command = ["--config-file", CONFIG, "--num-gpus=99", "train.device=cpu"]
    assert lazyconfig_train_net.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a multiple of the 99 processes" in line


def test_any_number_of_processes_can_evaluate(monkeypatch):
    started = []
    monkeypatch.setattr(job, "launch", lambda function, number, **_: started.append(number))
    assert lazyconfig_train_net.main(["--config-file", CONFIG, "--num-gpus=7", "--eval-only", "train.device=cpu"]) == 0
    assert started == [7]
