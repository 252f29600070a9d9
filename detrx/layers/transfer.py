"""Copies between host and device that wait for the device as rarely as possible."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on a device, or `x` itself if it is already there.

    The copy is made from pinned memory, so the host does not wait for the pending work of a GPU.
    """
    if device.type != "cuda" or x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one device on the host, without gradient, with one copy and therefore one wait for all of them.

    The results share memory. Tensors that are already on the host are returned unchanged.
    """
    away = [index for index, x in enumerate(tensors) if x.device.type != "cpu"]
    if not away:
        return list(tensors)
    # Sorted by descending element size, so that each piece is aligned for its dtype.
    away.sort(key=lambda index: -tensors[index].element_size())
    flat = [tensors[index].detach().flatten().view(torch.uint8) for index in away]
    pieces = torch.cat(flat).cpu().split([len(each) for each in flat])
    results = list(tensors)
    for index, piece in zip(away, pieces, strict=True):
        results[index] = piece.view(tensors[index].dtype).view(tensors[index].shape)
    return results
