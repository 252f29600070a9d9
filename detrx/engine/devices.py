"""Whether the device of a training exists, for each of its processes."""

import torch

from detrx.engine.config import ConfigError

__all__ = ["check_device"]


def check_device(name: str, processes: int | None = None, asked_by: str = "") -> torch.device:
    """The device called ``name``, after a check that this machine has one for each of its processes.

    Args:
        name: ``train.device`` of a config.
        processes: on this machine, of a job of several, each of which gets the GPU of its number on the machine; None:
            this is the only process.
        asked_by: what has asked for so many, for the message.

    Raises:
        ConfigError: there is no such device, or there are fewer than processes.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"train.device={name} is no device of torch, such as cuda or cpu: {error}") from error
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
        raise ConfigError(f"train.device={name} is one GPU, but every process of a job has its own: train.device=cuda")
    if device.index is not None and device.index >= count:
        raise ConfigError(f"train.device={name}, but torch sees {_gpus(count)}, cuda:0 to cuda:{count - 1}")
    return device


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
