"""Runs operators on tensors of the pretended device, by those of the CPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import runtime, streams
from .rules import all_tensors, aten, check_dtype, check_generator, check_mix, count_waits
from .tensor import CPU, PretendedTensor, is_pinned, numbers, on_device, on_host, pin
from .waits import wait

_COPIES = {aten.copy_.default, aten._copy_from.default}
_KERNELS = [True]
# A kind of device for which nothing of detrx is compiled, so that its operators are their PyTorch code there.
_WITHOUT_KERNELS = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)


@contextmanager
def without_kernels() -> Iterator[None]:
    """The operators of detrx are their PyTorch code, as on a GPU without compiled kernels."""
    _KERNELS.append(False)
    try:
        yield
    finally:
        _KERNELS.pop()


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `__torch_dispatch__` does with any operator."""
    tensors = all_tensors(args, kwargs)
    of_device = [x for x in tensors if on_device(x)]
    of_host = [x for x in tensors if not on_device(x)]
    if of_device:
        streams.check_read(func.name(), of_device)
    if func in _COPIES:
        return _copy(*args[:2], bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
    if func is aten._to_copy.default:
        return _to_copy(func, args[0], kwargs)
    if func is aten.is_pinned.default:
        return is_pinned(args[0])
    if func is aten._pin_memory.default:
        return pin(args[0])
    device = kwargs.get("device")
    result_on_device = bool(of_device) if device is None else torch.device(device).type == "cuda"
    if (of_device or result_on_device) and _is_composite(func):
        with runtime.DispatchMode():
            return func.decompose(*args, **kwargs)
    check_generator(func, kwargs, bool(of_device) or result_on_device)
    if of_device:
        if _is_python(func):  # and may take tensors of the host, too
            with runtime.modes():
                return func.redispatch(_WITHOUT_KERNELS, *args, **kwargs)
        if of_host:
            check_mix(func, args, kwargs, of_host)
        check_dtype(func, of_device)
        count_waits(func, args, kwargs)
    inner_args = [_behind(x) for x in args]
    inner_kwargs = {key: _behind(value) for key, value in kwargs.items()}
    wants_pinned = bool(inner_kwargs.pop("pin_memory", False)) and not result_on_device
    if torch.Tag.nondeterministic_seeded in func.tags and result_on_device:
        with runtime.device_generator():
            out = func(*inner_args, **inner_kwargs)
    else:
        out = func(*inner_args, **inner_kwargs)
    if changes := _changed_arguments(func):
        given = [args[index] if index < len(args) else kwargs.get(name) for index, name in changes]
        written = [x for each in given if each is not None for x in (each if isinstance(each, list) else [each])]
        streams.mark_written([x for x in written if on_device(x)])
        if func._schema.returns and any(_is_write(each) for each in func._schema.returns):
            for tensor in written:
                if on_device(tensor) and (tensor.shape, tensor.stride()) != (tensor.inner.shape, tensor.inner.stride()):
                    raise NotImplementedError(f"{func.name()} changes the shape in place")
            return written[0] if len(func._schema.returns) == 1 else tuple(written)
    if result_on_device:
        return _new(out)
    return pin(out) if wants_pinned else out


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others on every device. Where autograd is at work these come here by themselves,
    but not in inference mode and below autograd."""
    return func._can_decompose()


def _is_python(func: Any) -> bool:
    """Whether on the device an operator of detrx is Python code, which then runs on the pretended tensors."""
    name = func.name()
    if not name.startswith("detrx::"):
        return False
    return not (_KERNELS[-1] and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"))


def _behind(x: Any) -> Any:
    if isinstance(x, torch.device):
        return CPU if x.type == "cuda" else x
    if isinstance(x, (list, tuple)):
        return [_behind(each) for each in x]
    return x.inner if on_device(x) else x


def _new(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_new(each) for each in x)
    if not isinstance(x, Tensor):
        return x
    tensor = PretendedTensor(x)
    streams.mark_written([tensor])
    return tensor


def _is_write(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


@functools.cache
def _changed_arguments(func: Any) -> list[tuple[int, str]]:
    """Places and names of the arguments that an operator changes."""
    return [(index, each.name) for index, each in enumerate(func._schema.arguments) if _is_write(each)]


def _copy(target: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
    if on_device(target) and on_host(source):
        _upload(source, non_blocking)
    elif on_host(target) and on_device(source):
        if non_blocking and is_pinned(target):
            streams.copy_later(target, numbers(source).to(target.dtype))
            return target
        wait("copy to the host")
    numbers(target).copy_(numbers(source))
    if on_device(target):
        streams.mark_written([target])
    return target


def _to_copy(func: Any, source: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    device = kwargs.get("device")
    target = source.device if device is None else torch.device(device)
    non_blocking = bool(kwargs.get("non_blocking", False))
    inner = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
    out = func(numbers(source), **inner)
    if target.type == "cuda":
        if on_host(source):
            _upload(source, non_blocking)
        return _new(out)
    if on_device(source):
        if non_blocking:
            values, out = out, pin(torch.empty_like(out))
            streams.copy_later(out, values)
        else:
            wait("copy to the host")
    return out


def _upload(source: Tensor, non_blocking: bool) -> None:
    if not (non_blocking and is_pinned(source)):
        wait("copy to the device" + (" of memory that is not pinned" if non_blocking else ""))
