"""Tensors that say they are on cuda:0 while their numbers lie on the CPU, and memory that is called pinned."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .waits import DeviceError, place

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")


class PretendedTensor(Tensor):
    """A tensor on the pretended device.

    Attributes:
        inner: the numbers.
        written: stream and time of the last operator that wrote it, see `streams`.
    """

    __slots__ = ["inner", "written"]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
            requires_grad=False,
        )
        tensor.inner = inner
        tensor.written = None
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        from .dispatch import run

        return run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"PretendedTensor({self.inner!r})"

    def __deepcopy__(self, memo: dict) -> PretendedTensor:
        if id(self) not in memo:
            copied = PretendedTensor(self.inner.detach().clone())
            if getattr(self, "_is_param", False):
                copied._is_param = True
            copied.requires_grad_(self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]


def on_device(x: Any) -> bool:
    return isinstance(x, PretendedTensor)


def on_host(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, PretendedTensor)


def numbers(x: Tensor) -> Tensor:
    """The CPU tensor behind a tensor of either device."""
    return x.inner if isinstance(x, PretendedTensor) else x


_PINNED: set[int] = set()
"""Addresses of the storages that are called pinned, while they live."""


def pin(tensor: Tensor) -> Tensor:
    """A copy in memory that is called pinned, as all its views are; `tensor` itself where it is already.

    Raises:
        DeviceError: it is on the device.
    """
    if on_device(tensor):
        raise DeviceError(f"cannot pin a tensor of the device; only those of the host can be pinned @ {place(3)}")
    if is_pinned(tensor):
        return tensor
    memory = np.empty(max(1, tensor.numel()) * tensor.element_size(), dtype=np.uint8)
    address = memory.ctypes.data
    _PINNED.add(address)
    weakref.finalize(memory, _PINNED.discard, address)
    flat = torch.from_numpy(memory)[: tensor.numel() * tensor.element_size()].view(tensor.dtype)
    return flat.view(tensor.shape).copy_(tensor)


def is_pinned(tensor: Tensor) -> bool:
    return on_host(tensor) and tensor.untyped_storage().data_ptr() in _PINNED
