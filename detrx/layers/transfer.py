"""Copies between host and device that wait as rarely as they can."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device. The host does not wait for the work that a GPU still has to do: it copies from pinned memory.

    Where `x` is on the device already, it is `x` itself.
    """
    if device.type != "cuda" or x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device on the host, without gradient: one copy for all of them, and so one wait.

    They share memory. Those that are on the host are returned as they are.
    """
    away = [index for index, x in enumerate(tensors) if x.device.type != "cpu"]
    if not away:
        return list(tensors)
    # Those of the largest elements first: then each begins where its dtype may begin.
    away.sort(key=lambda index: -tensors[index].element_size())
    flat = [tensors[index].detach().flatten().view(torch.uint8) for index in away]
    pieces = torch.cat(flat).cpu().split([len(each) for each in flat])
    results = list(tensors)
    for index, piece in zip(away, pieces, strict=True):
        results[index] = piece.view(tensors[index].dtype).view(tensors[index].shape)
    return results
