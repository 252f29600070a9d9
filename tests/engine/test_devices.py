"""Jobs and the devices that this machine has, or claims to have."""

import argparse
import os

import pytest
import torch
from toy_runner import CONFIG

from detrx.engine import ConfigError, job
from detrx.engine.devices import check_device


@pytest.fixture
def gpus(monkeypatch):
    """Sets the number of GPUs."""

    def claim(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return claim


def test_devices_that_there_are(gpus):
    for count in (0, 2):
        gpus(count)
        assert check_device("cpu") == check_device("cpu", 8, "--num-gpus=8") == torch.device("cpu")
    assert check_device("cuda") == check_device("cuda", 2, "--num-gpus=2") == torch.device("cuda")
    assert check_device("cuda:1").index == 1


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (0, ["cuda"], "train.device=cuda, but torch sees no GPU; train.device=cpu trains without one"),
        (0, ["cuda", 2, "--num-gpus=2"], "train.device=cuda, but torch sees no GPU"),
        (1, ["cuda", 2, "--num-gpus=2"], "--num-gpus=2: 2 processes need a GPU each, but torch sees 1 GPU on this"),
        (
            4,
            ["cuda", 8, "LOCAL_WORLD_SIZE=8"],
            "LOCAL_WORLD_SIZE=8: 8 processes need a GPU each, but torch sees 4",
        ),
        (2, ["cuda:2"], "train.device=cuda:2, but torch sees 2 GPUs, cuda:0 to cuda:1"),
        (2, ["cuda:0", 2, "--num-gpus=2"], "train.device=cuda:0 is one GPU, but every process needs its own"),
        (2, ["gpu"], "train.device=gpu is not a device of torch"),
    ],
)
def test_devices_that_there_are_not(gpus, count, arguments, message):
    gpus(count)
    with pytest.raises(ConfigError, match=message):
        check_device(*arguments)


def args(*overrides, **settings):
    defaults = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "eval_only": False}
    return argparse.Namespace(config_file=CONFIG, opts=list(overrides), **{**defaults, **settings})


class Connected(Exception):
    pass


@pytest.mark.parametrize(
    ("device", "world_size", "backend", "current"),
    [("cpu", 2, "gloo", []), ("cuda", 2, "nccl", [1]), ("cuda:1", 1, "nccl", [torch.device("cuda:1")])],
)
def test_backend_of_torchrun_follows_the_device(gpus, monkeypatch, device, world_size, backend, current):
    gpus(2)
    chosen = []

    def init_process_group(name):
        assert name == backend
        raise Connected

    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    torchrun(monkeypatch, world_size, rank=world_size - 1)
    with pytest.raises(Connected):
        job.run_job(lambda args, cfg: None, args(f"train.device={device}"))
    assert chosen == current


def torchrun(monkeypatch, processes, rank=0):
    variables = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("launcher", ["torchrun", "launch", "alone"])
def test_missing_devices_are_one_line_before_anything_starts(gpus, monkeypatch, capsys, launcher):
    gpus(2)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_: pytest.fail("connected"))
    monkeypatch.setattr(job, "launch", lambda *_, **__: pytest.fail("launched"))
    if launcher == "torchrun":
        torchrun(monkeypatch, 3)
    device = "cuda:2" if launcher == "alone" else "cuda"
    started = args(f"train.device={device}", num_gpus=3 if launcher == "launch" else 1)
    assert job.run_job(lambda args, cfg: pytest.fail("called"), started) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "torch sees 2 GPUs" in line


@pytest.mark.parametrize(("device", "visible"), [("cpu", ""), ("cuda", "0,1")])
def test_processes_that_train_on_a_cpu_see_no_gpus(gpus, monkeypatch, device, visible):
    """Both providers' launch would connect them by NCCL."""
    gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []
    monkeypatch.setattr(job, "launch", lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    assert job.run_job(lambda args, cfg: None, args(f"train.device={device}", num_gpus=2)) == 0
    assert seen == [visible] and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if device == "cpu":
        assert job.run_job(lambda args, cfg: None, args("train.device=cpu", num_gpus=2)) == 0
        assert seen == ["", ""] and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_config_is_given_to_the_function():
    given = []
    assert job.run_job(lambda args, cfg: given.append(cfg.train.max_iter), args("train.max_iter=7")) == 0
    assert given == [7]
