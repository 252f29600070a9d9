"""What else of torch asks for a GPU: `torch.cuda`, the random state, and functions that never reach a dispatcher."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detrx.ops import has_kernel

from . import streams
from .build import install_guard
from .rules import aten, refuse
from .tensor import CUDA, is_pinned, on_device, pin
from .waits import AFTER_WAIT

_device_state: list[Tensor] = []
_PROPERTY = type(Tensor.shape.__get__)


@contextmanager
def device_generator() -> Iterator[None]:
    """Random numbers are those of the device's generator, which is another one than the host's."""
    generator = torch.default_generator
    host = generator.get_state()
    generator.set_state(_device_state[0])
    try:
        yield
    finally:
        _device_state[0] = generator.get_state()
        generator.set_state(host)


def manual_seed(seed: int) -> None:
    # Another sequence than that of the same seed on the host.
    _device_state[:] = [torch.Generator().manual_seed((int(seed) ^ 0x5DEECE66D) % 2**63).get_state()]


def get_rng_state(device: Any = "cuda") -> Tensor:
    return _device_state[0].clone()


def set_rng_state(new_state: Tensor, device: Any = "cuda") -> None:
    _device_state[0] = new_state.clone()


class device_context:
    """Stands for `torch.cuda.device`."""

    def __init__(self, device: Any):
        self.device = device

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        from .dispatch import run

        return run(func, args, kwargs or {})


class FunctionMode(TorchFunctionMode):
    """What C++ does before it dispatches: it asks the driver for the number of "cuda", and copies lists of numbers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if type(func) is _PROPERTY:
            return func(*args)
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0].to(CUDA, non_blocking=kwargs.get("non_blocking", False))
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            device = kwargs.pop("device", None)
            pinned = kwargs.pop("pin_memory", False)
            out = func(*args, **kwargs)
            return _to(pin(out) if pinned else out, device)
        if func is Tensor.new_tensor:
            device = kwargs.pop("device", args[0].device)
            return _to(torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}), device)
        if func is Tensor.tolist and on_device(args[0]):
            return args[0].to("cpu").tolist()
        if func is Tensor.numpy and on_device(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
                "first."
            )
        if func in (Tensor.__getitem__, Tensor.__setitem__) and on_device(args[0]):
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(each, list) for each in key):
                key = tuple(torch.tensor(each).to(CUDA) if isinstance(each, list) else each for each in key)
                return func(args[0], key, *args[2:])
        args = tuple(_indexed(x) for x in args)
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        return func(*args, **kwargs)


def _indexed(x: Any) -> Any:
    """cuda -> cuda:0"""
    if (isinstance(x, str) and x == "cuda") or (isinstance(x, torch.device) and x.type == "cuda" and x.index is None):
        return CUDA
    return x


def _to(tensor: Tensor, device: Any) -> Tensor:
    return tensor if device is None else tensor.to(_indexed(device))


@contextmanager
def modes() -> Iterator[None]:
    """What makes tensors of the device: needed in every thread that does."""
    with torch.autograd.set_multithreading_enabled(False), FunctionMode(), DispatchMode():
        yield


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stands for `scaled_dot_product_attention`, which would choose a kernel of the device, with its checks."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (x.to(dtype) if x.is_floating_point() else x for x in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    if not query.dtype == key.dtype == value.dtype:
        refuse(f"scaled_dot_product_attention: query, key and value are {query.dtype}, {key.dtype}, {value.dtype}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        refuse(f"scaled_dot_product_attention: the mask is {attn_mask.dtype}, the query {query.dtype}")
    with torch.autocast(device, enabled=False):
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]


_run_backward = torch.autograd._engine_run_backward


def run_backward(*args: Any, **kwargs: Any) -> Any:
    # `Tensor.backward` is a function that a mode may handle, and is off meanwhile; but layers may be run again.
    with FunctionMode():
        return _run_backward(*args, **kwargs)


@functools.cache
def install() -> None:
    """Make this process believe that it has a GPU. There is no way back."""
    install_guard()
    manual_seed(0)
    AFTER_WAIT.append(streams.waited)
    cuda = torch.cuda
    replaced = {
        "Event": streams.Event,
        "Stream": streams.Stream,
        "current_device": lambda: 0,
        "current_stream": streams.current,
        "default_stream": lambda device=None: streams.DEFAULT,
        "device": device_context,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended",
        "get_rng_state": get_rng_state,
        "get_rng_state_all": lambda: [get_rng_state()],
        "init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "is_initialized": lambda: True,
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed,
        "max_memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (80 << 30, 80 << 30),
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_device": lambda device: None,
        "set_rng_state": set_rng_state,
        "set_rng_state_all": lambda states: set_rng_state(states[0]),
        "stream": lambda stream: stream,
        "synchronize": streams.synchronize,
        "_initialized": True,
        "_lazy_init": lambda: None,
    }
    for name, value in replaced.items():
        setattr(cuda, name, value)
    # The numbers lie on the CPU, where operators that exist for GPUs only cannot run, whatever was compiled.
    from detrx.ops import expert_linear

    module = sys.modules[expert_linear.__module__]
    module.has_kernel = lambda name, _: has_kernel(name, "cpu")
    torch.autograd._engine_run_backward = run_backward
    # Of the class, not of a mode, as loaders pin memory in a thread of their own.
    Tensor.pin_memory = _pin_memory
    Tensor.is_pinned = lambda tensor, device=None: is_pinned(tensor)
    Tensor.record_stream = lambda tensor, stream: None  # torch's own takes none but torch's streams
    torch.backends.cudnn.enabled = False
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    F.scaled_dot_product_attention = attention


def _pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    return pin(tensor)
