"""Query routing: pack the queries that a layer processes into a smaller tensor, and put the results back.

    route = query_route(keep)                            # reads the number of slots from the device: once per mask
    (x, pos), *_ = query_gather((x_all, pos_all), route)
    x_all = query_scatter(x_all, layer(x, pos), *route)

Letters of the shapes: B images, N queries, K slots for the kept queries. Tensors may have any dtype; floating-point
ones have gradients of any order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detrx.ops._extension import register_fallback
from detrx.ops._precision import autocast_to_wider


class QueryRoute(NamedTuple):
    """The query in each slot.

    Attributes:
        index: (B, K) int64, index of the slot's query among the N of its image; 0 for padding.
        valid: (B, K) bool, False for padding, which comes last.
    """

    index: Tensor  # type: ignore[assignment]  # in place of the method of tuples
    valid: Tensor


def query_route(keep: Tensor, capacity: int | None = None) -> QueryRoute:
    """Assign slots to the kept queries, in their order.

    Args:
        keep: (B, N) bool.
        capacity: the number K of slots, at most N and at least the number of queries that any image keeps. By default
            the largest number that an image keeps, which is read from the device; nothing else in query routing waits
            for it.

    Raises:
        ValueError, TypeError: `keep` is not (B, N) bool.
        ValueError: the capacity is out of range or less than an image keeps (a device-side assertion on a GPU).
    """
    _check_keep("query_route", keep, capacity)
    return QueryRoute(*torch.ops.detrx.query_route(keep, capacity))


def query_gather(
    x: Tensor | Sequence[Tensor], keep: Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
    """Pack the kept queries of `x`.

    A route that was not made by `query_route` may put a query into several slots, but then this has no gradient, and
    the route cannot be used to scatter.

    Args:
        x: (B, N, ...), or several such tensors.
        keep: (B, N) bool, or the `QueryRoute` of such a mask.

    Returns:
        packed: (B, K, ...) for each tensor of `x`, zero in padding slots; a list if `x` is a sequence.
        index, valid: the route, (B, K) each.

    Raises:
        ValueError: shapes or devices do not fit together.
        TypeError: dtypes do not fit together.
    """
    tensors = _as_list(x)
    if isinstance(keep, Tensor):
        _check_keep("query_gather", keep, None)
        _check_rows("query_gather", "x", tensors, keep.shape[1], "keep", keep)
        index, valid = query_route(keep)
    else:
        index, valid = keep
        _check_route("query_gather", index, valid)
        _check_rows("query_gather", "x", tensors, None, "index", index)
    packed = torch.ops.detrx.query_gather(tensors, index, valid)
    return (packed[0] if isinstance(x, Tensor) else packed), index, valid


def query_scatter(
    base: Tensor | Sequence[Tensor], packed: Tensor | Sequence[Tensor], index: Tensor, valid: Tensor
) -> Tensor | list[Tensor]:
    """Copy `base`, with the packed queries at their original positions.

    Under autocast, if the dtypes of a pair differ, both are converted to the wider one.

    Args:
        base: (B, N, ...), or several such tensors.
        packed: (B, K, ...) of the same dtype, for each of `base`. Padding slots are ignored.
        index, valid: the route, (B, K) each.

    Returns:
        (B, N, ...) for each tensor of `base`; a list if `base` is a sequence.

    Raises:
        ValueError: shapes or devices do not fit together, or `packed` has another number of tensors than `base`.
        TypeError: dtypes do not fit together.
    """
    bases, packs = _as_list(base), _as_list(packed)
    _check_route("query_scatter", index, valid)
    _check_rows("query_scatter", "base", bases, None, "index", index)
    _check_rows("query_scatter", "packed", packs, index.shape[1], "index", index)
    if len(bases) != len(packs):
        raise ValueError(f"query_scatter: packed has {len(packs)} tensors, base has {len(bases)}")
    pairs = [autocast_to_wider(b, p) for b, p in zip(bases, packs, strict=True)]
    bases, packs = [b for b, _ in pairs], [p for _, p in pairs]
    _check_pairs(bases, packs)
    merged = torch.ops.detrx.query_scatter(bases, packs, index, valid)
    return merged[0] if isinstance(base, Tensor) else merged


def query_route_reference(keep: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """The operator `query_route` in plain PyTorch: what the kernels are tested against, and their fallback."""
    _check_keep("query_route", keep, capacity)
    counts = keep.sum(1)
    largest = int(counts.max()) if keep.numel() else 0
    slots = largest if capacity is None else capacity
    if largest > slots:
        raise ValueError(
            f"query_route: capacity is {slots}, but an image of keep of shape {list(keep.shape)} keeps {largest}"
        )
    valid = torch.arange(slots, device=keep.device) < counts[:, None]
    kept_first = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return kept_first[:, :slots].masked_fill(~valid, 0), valid


def query_gather_reference(x: Sequence[Tensor], index: Tensor, valid: Tensor) -> list[Tensor]:
    """The operator `query_gather` in plain PyTorch, for a list of tensors."""
    images, slots = valid.nonzero(as_tuple=True)
    queries = index[images, slots]
    packed = []
    for tensor in x:
        rows = tensor.new_zeros((*index.shape, *tensor.shape[2:]))
        rows[images, slots] = tensor[images, queries]
        packed.append(rows)
    return packed


def query_scatter_reference(
    base: Sequence[Tensor], packed: Sequence[Tensor], index: Tensor, valid: Tensor
) -> list[Tensor]:
    """The operator `query_scatter` in plain PyTorch, for lists of tensors."""
    images, slots = valid.nonzero(as_tuple=True)
    queries = index[images, slots]
    merged = []
    for tensor, rows in zip(base, packed, strict=True):
        output = tensor.clone(memory_format=torch.contiguous_format)
        output[images, queries] = rows[images, slots]
        merged.append(output)
    return merged


def _unpack_reference(packed: Sequence[Tensor], index: Tensor, valid: Tensor, queries: int) -> list[Tensor]:
    zeros = [x.new_zeros((x.shape[0], queries, *x.shape[2:])) for x in packed]
    return query_scatter_reference(zeros, packed, index, valid)


def _clear_reference(x: Sequence[Tensor], index: Tensor, valid: Tensor) -> list[Tensor]:
    zeros = [tensor.new_zeros((*index.shape, *tensor.shape[2:])) for tensor in x]
    return query_scatter_reference(x, zeros, index, valid)


def _as_list(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)


def _check_keep(op: str, keep: Tensor, capacity: int | None) -> None:
    if keep.dim() != 2:
        raise ValueError(f"{op}: keep has shape {list(keep.shape)}, expected (B, N)")
    if keep.dtype != torch.bool:
        raise TypeError(f"{op}: keep of shape {list(keep.shape)} has dtype {keep.dtype}, expected torch.bool")
    if capacity is not None and not 0 <= capacity <= keep.shape[1]:
        raise ValueError(f"{op}: capacity is {capacity}, expected 0 to N for keep of shape {list(keep.shape)} (B, N)")


def _check_route(op: str, index: Tensor, valid: Tensor) -> None:
    if index.dim() != 2:
        raise ValueError(f"{op}: index has shape {list(index.shape)}, expected (B, K)")
    if valid.shape != index.shape:
        raise ValueError(f"{op}: valid has shape {list(valid.shape)}, index has shape {list(index.shape)}")
    for name, tensor, dtype in (("index", index, torch.int64), ("valid", valid, torch.bool)):
        if tensor.dtype != dtype:
            raise TypeError(f"{op}: {name} of shape {list(tensor.shape)} has dtype {tensor.dtype}, expected {dtype}")
    if valid.device != index.device:
        raise ValueError(
            f"{op}: valid of shape {list(valid.shape)} is on {valid.device}, "
            f"index of shape {list(index.shape)} on {index.device}"
        )


def _check_rows(op: str, name: str, tensors: list[Tensor], rows: int | None, reason_name: str, reason: Tensor) -> None:
    """Check that each tensor is (B, rows, ...), with B and device of `reason`. If `rows` is None, the first sets it."""
    if not tensors:
        raise ValueError(f"{op}: {name} has no tensors")
    for i, x in enumerate(tensors):
        label = f"{name}[{i}]" if len(tensors) > 1 else name
        if x.dim() < 2 or x.shape[0] != reason.shape[0] or (rows is not None and x.shape[1] != rows):
            expected = f"({reason.shape[0]}, {'N' if rows is None else rows}, ...)"
            raise ValueError(
                f"{op}: {label} has shape {list(x.shape)}, expected {expected} "
                f"to fit {reason_name} of shape {list(reason.shape)}"
            )
        rows = x.shape[1]
        if x.device != reason.device:
            raise ValueError(
                f"{op}: {label} of shape {list(x.shape)} is on {x.device}, "
                f"{reason_name} of shape {list(reason.shape)} on {reason.device}"
            )


def _check_pairs(bases: list[Tensor], packs: list[Tensor]) -> None:
    for i, (base, packed) in enumerate(zip(bases, packs, strict=True)):
        suffix = f"[{i}]" if len(bases) > 1 else ""
        if packed.shape[2:] != base.shape[2:]:
            raise ValueError(
                f"query_scatter: packed{suffix} has shape {list(packed.shape)}, "
                f"which does not fit base{suffix} of shape {list(base.shape)}"
            )
        if packed.dtype != base.dtype:
            raise TypeError(
                f"query_scatter: packed{suffix} of shape {list(packed.shape)} has dtype {packed.dtype}, "
                f"base{suffix} of shape {list(base.shape)} has {base.dtype}"
            )


register_fallback("query_route", "(Tensor keep, SymInt? capacity=None) -> (Tensor, Tensor)", query_route_reference)
register_fallback("query_gather", "(Tensor[] x, Tensor index, Tensor valid) -> Tensor[]", query_gather_reference)
register_fallback(
    "query_scatter",
    "(Tensor[] base, Tensor[] packed, Tensor index, Tensor valid) -> Tensor[]",
    query_scatter_reference,
)
register_fallback(
    "query_unpack", "(Tensor[] packed, Tensor index, Tensor valid, SymInt queries) -> Tensor[]", _unpack_reference
)
register_fallback("query_clear", "(Tensor[] x, Tensor index, Tensor valid) -> Tensor[]", _clear_reference)


@torch.library.register_fake("detrx::query_route")
def _fake_route(keep, capacity=None):
    _check_keep("query_route", keep, capacity)
    slots = torch.library.get_ctx().new_dynamic_size() if capacity is None else capacity
    shape = (keep.shape[0], slots)
    return keep.new_empty(shape, dtype=torch.int64), keep.new_empty(shape)


@torch.library.register_fake("detrx::query_gather")
def _fake_gather(x, index, valid):
    _check_route("query_gather", index, valid)
    _check_rows("query_gather", "x", x, None, "index", index)
    return [tensor.new_empty((*index.shape, *tensor.shape[2:])) for tensor in x]


@torch.library.register_fake("detrx::query_scatter")
def _fake_scatter(base, packed, index, valid):
    _check_route("query_scatter", index, valid)
    _check_rows("query_scatter", "base", base, None, "index", index)
    _check_rows("query_scatter", "packed", packed, index.shape[1], "index", index)
    _check_pairs(base, packed)
    return [tensor.new_empty(tensor.shape) for tensor in base]


@torch.library.register_fake("detrx::query_unpack")
def _fake_unpack(packed, index, valid, queries):
    return [tensor.new_empty((tensor.shape[0], queries, *tensor.shape[2:])) for tensor in packed]


@torch.library.register_fake("detrx::query_clear")
def _fake_clear(x, index, valid):
    return [tensor.new_empty(tensor.shape) for tensor in x]


# The four operators that move rows are linear, and the gradient of each consists of one or two of them: gather and
# unpack are adjoint, clear is self-adjoint, and scatter is clear of the base plus unpack of the packed rows.


def _apply(operator, gradients, needed, *route) -> list[Tensor | None]:
    """Apply `operator` to the gradients that exist and are needed; None in place of the others."""
    wanted = [grad is not None and need for grad, need in zip(gradients, needed, strict=True)]
    present = [grad for grad, want in zip(gradients, wanted, strict=True) if want]
    results = iter(operator(present, *route) if present else ())
    return [next(results) if want else None for want in wanted]


def _setup_context(ctx, inputs, output) -> None:
    index, valid = (x for x in inputs if isinstance(x, Tensor))
    ctx.save_for_backward(index, valid)
    ctx.set_materialize_grads(False)


def _setup_gather_context(ctx, inputs, output) -> None:
    _setup_context(ctx, inputs, output)
    ctx.queries = inputs[0][0].shape[1]


def _gather_backward(ctx, gradients):
    index, valid = ctx.saved_tensors
    grad_x = _apply(torch.ops.detrx.query_unpack, gradients, ctx.needs_input_grad[0], index, valid, ctx.queries)
    return grad_x, None, None


def _scatter_backward(ctx, gradients):
    index, valid = ctx.saved_tensors
    grad_base = _apply(torch.ops.detrx.query_clear, gradients, ctx.needs_input_grad[0], index, valid)
    grad_packed = _apply(torch.ops.detrx.query_gather, gradients, ctx.needs_input_grad[1], index, valid)
    return grad_base, grad_packed, None, None


def _unpack_backward(ctx, gradients):
    grad_packed = _apply(torch.ops.detrx.query_gather, gradients, ctx.needs_input_grad[0], *ctx.saved_tensors)
    return grad_packed, None, None, None


def _clear_backward(ctx, gradients):
    grad_x = _apply(torch.ops.detrx.query_clear, gradients, ctx.needs_input_grad[0], *ctx.saved_tensors)
    return grad_x, None, None


torch.library.register_autograd("detrx::query_gather", _gather_backward, setup_context=_setup_gather_context)
torch.library.register_autograd("detrx::query_scatter", _scatter_backward, setup_context=_setup_context)
torch.library.register_autograd("detrx::query_unpack", _unpack_backward, setup_context=_setup_context)
torch.library.register_autograd("detrx::query_clear", _clear_backward, setup_context=_setup_context)
