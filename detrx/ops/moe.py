"""Routing of tokens to experts: choose and sort, gather into expert order, weighted scatter back.

    routing = moe_route(logits, k)
    rows = moe_dispatch(x, routing.order, routing.place)
    output = moe_combine(experts(rows, routing.ends), routing.weights, routing.order, routing.place)

Letters of the shapes: T tokens, E experts, k experts per token, C channels. An assignment is a pair of a token and one
of its k choices, numbered `token * k + choice`. Between dispatch and combine the T * k assignments are in expert order:
all of expert 0, then all of expert 1, ... None of these functions makes the host wait for a device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detrx.ops._extension import register_fallback
from detrx.ops._precision import REDUCED, autocast_to_full

MAX_EXPERTS, MAX_K = 256, 8
_FLOATING = (torch.float32, torch.float64, *REDUCED)


class Routing(NamedTuple):
    """The assignment of tokens to experts.

    Attributes:
        weights: (T, k), sum to one over k, best expert first.
        experts: (T, k) int64.
        counts: (E,) int64, number of assignments of each expert.
        ends: (E,) int32, end of the rows of each expert (exclusive) in expert order: the running sum of `counts`.
        order: (T * k,) int64, the assignments sorted by expert, those of one expert by token.
        place: (T, k) int64, the row of each assignment in expert order: the inverse of `order`.
    """

    weights: Tensor
    experts: Tensor
    counts: Tensor
    ends: Tensor
    order: Tensor
    place: Tensor


def moe_route(logits: Tensor, k: int) -> Routing:
    """Choose for each token the `k` experts with the largest logits; among equal logits, the expert with lower index.

    The weights are the renormalised softmax probabilities of the chosen experts. They are differentiable once, with
    respect to `logits`. Under autocast, logits of reduced precision are computed in float32.

    Args:
        logits: (T, E), at most 256 experts.
        k: 1 to 8, at most E.

    Raises:
        ValueError: `k` or a shape is out of range.
        TypeError: `logits` is not a floating-point tensor.
    """
    (logits,) = autocast_to_full(logits)
    _check_route(logits, k)
    return Routing(*torch.ops.detrx.moe_route(logits, k))


def moe_dispatch(x: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """Copy tokens `x` (T, C) into expert order: (T * k, C), row i is token `order[i] // k`. Differentiable once.

    Args:
        x: (T, C).
        order, place: (T * k,) and (T, k), of the `Routing`.

    Raises:
        ValueError: shapes or devices do not fit together, or `order` and `place` are not inverse permutations (a
            device-side assertion on a GPU).
        TypeError: `x` is not a floating-point tensor, or `order` or `place` not int64.
    """
    _check_dispatch(x, order, place)
    return torch.ops.detrx.moe_dispatch(x, order, place)


def moe_combine(y: Tensor, weights: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """Weighted sum of each token's k rows of `y`, which is in expert order: (T, C).

    Differentiable once, with respect to `y` and `weights`. Half precision is summed in float32.

    Args:
        y: (T * k, C).
        weights: (T, k), converted to the dtype of `y`.
        order, place: (T * k,) and (T, k), of the `Routing`.

    Raises:
        ValueError: shapes or devices do not fit together, or `order` and `place` are not inverse permutations (a
            device-side assertion on a GPU).
        TypeError: `y` or `weights` is not a floating-point tensor, or `order` or `place` not int64.
    """
    _check_combine(y, weights, order, place)
    return torch.ops.detrx.moe_combine(y, weights.to(y.dtype), order, place)


def moe_route_reference(logits: Tensor, k: int) -> Routing:
    """`moe_route` in PyTorch: what the kernels are tested against, and their fallback."""
    _check_route(logits, k)
    values, experts = logits.sort(dim=1, descending=True, stable=True)
    experts = experts[:, :k].contiguous()
    weights = _widen(values[:, :k]).softmax(1).to(logits.dtype)
    flat = experts.flatten()
    counts = torch.zeros(logits.shape[1], dtype=torch.int64, device=logits.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    order = flat.argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    return Routing(weights, experts, counts, counts.cumsum(0, dtype=torch.int32), order, place.view(experts.shape))


def moe_dispatch_reference(x: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """`moe_dispatch` in PyTorch."""
    _check_dispatch(x, order, place)
    return x[order // place.shape[1]]


def moe_combine_reference(y: Tensor, weights: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """`moe_combine` in PyTorch."""
    _check_combine(y, weights, order, place)
    return (_widen(y)[place] * _widen(weights).unsqueeze(2)).sum(1).to(y.dtype)


def _route_backward(grad_weights: Tensor, logits: Tensor, experts: Tensor) -> Tensor:
    weights = _widen(logits).gather(1, experts).softmax(1)
    weighted = weights * _widen(grad_weights)
    gradient = weighted - weights * weighted.sum(1, keepdim=True)
    return torch.zeros_like(logits, memory_format=torch.contiguous_format).scatter(
        1, experts, gradient.to(logits.dtype)
    )


def _dispatch_backward(grad_output: Tensor, order: Tensor, place: Tensor) -> Tensor:
    return _widen(grad_output)[place].sum(1).to(grad_output.dtype)


def _combine_backward(
    grad_output: Tensor, y: Tensor, weights: Tensor, order: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    grad = _widen(grad_output)[order // weights.shape[1]]
    grad_y = grad * _widen(weights).flatten()[order].unsqueeze(1)
    grad_weights = (grad * _widen(y)).sum(1)[place]
    return grad_y.to(y.dtype), grad_weights.to(y.dtype)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in REDUCED else x


def _check_route(logits: Tensor, k: int) -> None:
    if logits.dim() != 2:
        raise ValueError(f"moe_route: logits has shape {list(logits.shape)}, expected (T, E)")
    _check_floating("moe_route", "logits", logits)
    _check_k("moe_route", k)
    if k > logits.shape[1]:
        raise ValueError(f"moe_route: k is {k}, more than the experts in logits of shape {list(logits.shape)} (T, E)")
    if logits.shape[1] > MAX_EXPERTS:
        raise ValueError(
            f"moe_route: logits of shape {list(logits.shape)} (T, E) has {logits.shape[1]} experts, "
            f"expected at most {MAX_EXPERTS}"
        )


def _check_dispatch(x: Tensor, order: Tensor, place: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"moe_dispatch: x has shape {list(x.shape)}, expected (T, C)")
    _check_floating("moe_dispatch", "x", x)
    _check_places("moe_dispatch", order, place, x.shape[0], None, "x", x)


def _check_combine(y: Tensor, weights: Tensor, order: Tensor, place: Tensor) -> None:
    if y.dim() != 2:
        raise ValueError(f"moe_combine: y has shape {list(y.shape)}, expected (T * k, C)")
    _check_floating("moe_combine", "y", y)
    if weights.dim() != 2:
        raise ValueError(
            f"moe_combine: weights has shape {list(weights.shape)}, expected (T, k) for y of shape {list(y.shape)}"
        )
    _check_floating("moe_combine", "weights", weights)
    _check_k("moe_combine", weights.shape[1])
    if y.shape[0] != weights.numel():
        raise ValueError(
            f"moe_combine: y has shape {list(y.shape)}, expected {weights.numel()} rows "
            f"to fit weights of shape {list(weights.shape)} (T, k)"
        )
    _check_device("moe_combine", "weights", weights, "y", y)
    tokens, k = weights.shape
    _check_places("moe_combine", order, place, tokens, k, "weights", weights)


def _check_places(
    op: str, order: Tensor, place: Tensor, tokens: int, k: int | None, other_name: str, other: Tensor
) -> None:
    """`place` is (tokens, k), of any k if that is None, and `order` fits it."""
    if place.dim() != 2 or place.shape[0] != tokens or (k is not None and place.shape[1] != k):
        raise ValueError(
            f"{op}: place has shape {list(place.shape)}, expected ({tokens}, {'k' if k is None else k}) "
            f"to fit {other_name} of shape {list(other.shape)}"
        )
    _check_k(op, place.shape[1])
    if order.dim() != 1 or order.shape[0] != place.numel():
        raise ValueError(
            f"{op}: order has shape {list(order.shape)}, expected [{place.numel()}] "
            f"to fit place of shape {list(place.shape)}"
        )
    for name, x in (("order", order), ("place", place)):
        if x.dtype != torch.int64:
            raise TypeError(f"{op}: {name} of shape {list(x.shape)} has dtype {x.dtype}, expected torch.int64")
        _check_device(op, name, x, other_name, other)


def _check_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} of shape {list(tensor.shape)} is on {tensor.device}, "
            f"{other_name} of shape {list(other.shape)} on {other.device}"
        )


def _check_floating(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATING:
        raise TypeError(
            f"{op}: {name} of shape {list(tensor.shape)} has dtype {tensor.dtype}, "
            "expected float32, float64, float16 or bfloat16"
        )


def _check_k(op: str, k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise ValueError(f"{op}: k is {k}, expected 1 to {MAX_K}")


register_fallback(
    "moe_route", "(Tensor logits, int k) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", moe_route_reference
)
register_fallback(
    "moe_route_backward", "(Tensor grad_weights, Tensor logits, Tensor experts) -> Tensor", _route_backward
)
register_fallback("moe_dispatch", "(Tensor x, Tensor order, Tensor place) -> Tensor", moe_dispatch_reference)
register_fallback(
    "moe_dispatch_backward", "(Tensor grad_output, Tensor order, Tensor place) -> Tensor", _dispatch_backward
)
register_fallback(
    "moe_combine", "(Tensor y, Tensor weights, Tensor order, Tensor place) -> Tensor", moe_combine_reference
)
register_fallback(
    "moe_combine_backward",
    "(Tensor grad_output, Tensor y, Tensor weights, Tensor order, Tensor place) -> (Tensor, Tensor)",
    _combine_backward,
)


@torch.library.register_fake("detrx::moe_route")
def _fake_route(logits, k):
    _check_route(logits, k)
    tokens, experts = logits.shape
    return (
        logits.new_empty((tokens, k)),
        logits.new_empty((tokens, k), dtype=torch.int64),
        logits.new_empty((experts,), dtype=torch.int64),
        logits.new_empty((experts,), dtype=torch.int32),
        logits.new_empty((tokens * k,), dtype=torch.int64),
        logits.new_empty((tokens, k), dtype=torch.int64),
    )


@torch.library.register_fake("detrx::moe_route_backward")
def _fake_route_backward(grad_weights, logits, experts):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("detrx::moe_dispatch")
def _fake_dispatch(x, order, place):
    _check_dispatch(x, order, place)
    return x.new_empty((order.shape[0], x.shape[1]))


@torch.library.register_fake("detrx::moe_dispatch_backward")
def _fake_dispatch_backward(grad_output, order, place):
    return grad_output.new_empty((place.shape[0], grad_output.shape[1]))


@torch.library.register_fake("detrx::moe_combine")
def _fake_combine(y, weights, order, place):
    _check_combine(y, weights, order, place)
    return y.new_empty((weights.shape[0], y.shape[1]))


@torch.library.register_fake("detrx::moe_combine_backward")
def _fake_combine_backward(grad_output, y, weights, order, place):
    return y.new_empty(y.shape), weights.new_empty(weights.shape)


def _setup_route(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _autograd_route(ctx, grad_weights, *_):
    return torch.ops.detrx.moe_route_backward(grad_weights, *ctx.saved_tensors), None


def _setup_dispatch(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _autograd_dispatch(ctx, grad_output):
    return torch.ops.detrx.moe_dispatch_backward(grad_output, *ctx.saved_tensors), None, None


def _setup_combine(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _autograd_combine(ctx, grad_output):
    return *torch.ops.detrx.moe_combine_backward(grad_output, *ctx.saved_tensors), None, None


torch.library.register_autograd("detrx::moe_route", _autograd_route, setup_context=_setup_route)
torch.library.register_autograd("detrx::moe_dispatch", _autograd_dispatch, setup_context=_setup_dispatch)
torch.library.register_autograd("detrx::moe_combine", _autograd_combine, setup_context=_setup_combine)
