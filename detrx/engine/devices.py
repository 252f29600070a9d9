"""Checking that each process of a training has a device."""

import torch

from detrx.engine.config import ConfigError
from detrx.errors import first_line

__all__ = ["check_device"]


def check_device(name: str, processes: int | None = None, asked_by: str = "") -> torch.device:
    """The device called ``name``, after checking that this machine has one for each process.

    Args:
        name: ``train.device`` of a config.
        processes: number of processes on this machine, each of which needs its own GPU; None: this is the only process
            of the job.
        asked_by: the option or variable that set ``processes``, for the message.

    Raises:
        ConfigError: the device does not exist, or there are fewer GPUs than processes.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"train.device={name} is not a device of torch, such as cuda or cpu: {first_line(error)}"
        ) from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ConfigError(f"train.device={name}, but torch sees no GPU; train.device=cpu trains without one")
    if processes is not None and processes > count:
        raise ConfigError(
            f"{asked_by}: {processes} processes need a GPU each, but torch sees {_gpus(count)} on this machine; "
            "train.device=cpu trains without"
        )
    if processes is not None and device.index is not None:
        raise ConfigError(f"train.device={name} is one GPU, but every process needs its own: use train.device=cuda")
    if device.index is not None and device.index >= count:
        raise ConfigError(f"train.device={name}, but torch sees {_gpus(count)}, cuda:0 to cuda:{count - 1}")
    return device


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
