"""What CUDA refuses, and for what it makes the host wait."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .tensor import on_device, on_host
from .waits import DeviceError, place, wait

aten = torch.ops.aten

INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
TAKE_HOST_NUMBERS = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill_.Tensor,
    aten.fill.Tensor,
    aten.set_.source_Tensor,
}
"""Operators besides pointwise ones to which a tensor of the host without dimensions is a number."""
COPY_HOST_NUMBERS = {aten.where.self}
"""They take it, too, but copy it to the device first."""
NOT_FOR_INTEGERS = ("mm", "addmm", "bmm", "baddbmm")
SIZES_UNKNOWN = {
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
    "_local_scalar_dense",
    "_unique2",
}
"""They tell the host something about what the device computed: the size of their output, or a value."""


def refuse(message: str) -> NoReturn:
    raise DeviceError(f"{message} @ {place(3)}")


def all_tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Those among the arguments of an operator, and in the lists among them."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [x for x in value if isinstance(x, Tensor)]
    return found


@functools.cache
def base_name(func: Any) -> str:
    """ "aten::index_put.default" -> "index_put"."""
    return func.name().split("::")[-1].split(".")[0]


def check_generator(func: Any, kwargs: Mapping[str, Any], of_device: bool) -> None:
    generator = kwargs.get("generator")
    wanted = "cuda" if of_device else "cpu"
    if generator is not None and generator.device.type != wanted:
        refuse(f"{func.name()}: expected a generator of {wanted}, got one of {generator.device.type}")


def check_mix(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], of_host: Sequence[Tensor]) -> None:
    """Refuse a call that gets tensors of both devices, or count the copies that make it work."""
    if func in INDEXING:
        check_indexing(func, args)
        return
    if all(tensor.dim() == 0 for tensor in of_host):
        if func in COPY_HOST_NUMBERS:
            wait(f"number of the host in {base_name(func)}")
            return
        if torch.Tag.pointwise in func.tags or func in TAKE_HOST_NUMBERS:
            return
    described = ", ".join(f"{x.device} {x.dtype} {tuple(x.shape)}" for x in all_tensors(args, kwargs))
    refuse(f"Expected all tensors to be on the same device: {func.name()} got {described}")


def check_indexing(func: Any, args: Sequence[Any]) -> None:
    target, indices = args[0], args[1]
    if on_host(target):
        refuse(f"{func.name()}: indices on the device for a tensor of the host")
    if any(on_host(index) for index in indices):
        wait("index of the host")
    if len(args) > 2 and on_host(args[2]) and not fills_mask(args):
        if args[2].dim():
            refuse(f"{func.name()}: values of the host for a tensor on the device")
        wait("number of the host in index_put")


def fills_mask(args: Sequence[Any]) -> bool:
    """Whether an index_put becomes a masked_fill: one mask, and a number."""
    indices, value = args[1], args[2]
    given = [index for index in indices if index is not None]
    is_mask = len(given) == 1 and indices[0] is not None and indices[0].dtype in (torch.bool, torch.uint8)
    return is_mask and on_host(value) and value.dim() == 0


def check_dtype(func: Any, tensors: Sequence[Tensor]) -> None:
    name = base_name(func)
    if name in NOT_FOR_INTEGERS and not tensors[0].is_floating_point():
        refuse(f'"{name}_cuda" not implemented for {tensors[0].dtype}')


def count_waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Of an operator on the device, other than copies."""
    name = base_name(func)
    if name in SIZES_UNKNOWN:
        wait(name.strip("_"))
    elif name == "repeat_interleave" and on_device(args[0]) and "Tensor" in func.name():
        if kwargs.get("output_size") is None:
            wait("repeat_interleave without output_size")
    elif func in INDEXING:
        is_mask = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if is_mask and not (len(args) > 2 and fills_mask(args)):
            wait("index that is a mask")
    elif name == "query_route" and (len(args) < 2 or args[1] is None) and kwargs.get("capacity") is None:
        wait("query_route without capacity")
