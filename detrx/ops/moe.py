"""Routing of tokens to experts: choose and sort, gather into expert order, weighted scatter back.

Letters of the shapes: T tokens, E experts, k experts per token, C channels. An assignment is a pair of a token and one
of its k choices, numbered `token * k + choice`. Between dispatch and combine the T * k assignments lie in expert order:
all of expert 0, then all of expert 1, ... Nothing here reads a tensor of another device on the host.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detrx.ops._extension import register_fallback
from detrx.ops._precision import REDUCED, autocast_to_full

MAX_EXPERTS, MAX_K = 256, 8
_FLOATING = (torch.float32, torch.float64, *REDUCED)


class Routing(NamedTuple):
    """Where each token goes.

    Attributes:
        weights: (T, k), sum to one over k, best expert first.
        experts: (T, k) int64.
        counts: (E,) int64, assignments of each expert.
        order: (T * k,) int64, the assignments sorted by expert, those of one expert by token.
    """

    weights: Tensor
    experts: Tensor
    counts: Tensor
    order: Tensor


def moe_route(logits: Tensor, k: int) -> Routing:
    """Choose the `k` experts of each token with the largest logits; of equal ones, the lower expert.

    The weights are the chosen softmax probabilities, renormalised: differentiable (once) with respect to `logits`.
    Under autocast, logits of reduced precision are computed in float32.

    Args:
        logits: (T, E), at most 256 experts.
        k: 1 to 8, at most E.

    Raises:
        ValueError: `k`, or a shape, that is out of range.
        TypeError: `logits` is not a floating-point tensor.
    """
    (logits,) = autocast_to_full(logits)
    _check_route(logits, k)
    return Routing(*torch.ops.detrx.moe_route(logits, k))


def moe_dispatch(x: Tensor, order: Tensor, k: int) -> Tensor:
    """Copy tokens `x` (T, C) into expert order: (T * k, C), row i is token `order[i] // k`. Differentiable once.

    Raises:
        ValueError: shapes or devices that do not fit together, or (on the CPU) an `order` that is no permutation.
        TypeError: `x` is not a floating-point tensor, or `order` not int64.
    """
    _check_dispatch(x, order, k)
    return torch.ops.detrx.moe_dispatch(x, order, k)


def moe_combine(y: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """Weighted sum of each token's k rows of `y` (T * k, C), which is in expert order: (T, C).

    Differentiable once, with respect to `y` and `weights`. `weights` (T, k) are converted to the dtype of `y`; half
    precision is summed in float32.

    Raises:
        ValueError: shapes or devices that do not fit together, or (on the CPU) an `order` that is no permutation.
        TypeError: `y` or `weights` is not a floating-point tensor, or `order` not int64.
    """
    _check_combine(y, weights, order)
    return torch.ops.detrx.moe_combine(y, weights.to(y.dtype), order)


def moe_route_reference(logits: Tensor, k: int) -> Routing:
    """`moe_route` in PyTorch: what the kernels are tested against, and their fallback."""
    _check_route(logits, k)
    values, experts = logits.sort(dim=1, descending=True, stable=True)
    experts = experts[:, :k].contiguous()
    weights = _widen(values[:, :k]).softmax(1).to(logits.dtype)
    flat = experts.flatten()
    counts = torch.zeros(logits.shape[1], dtype=torch.int64, device=logits.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return Routing(weights, experts, counts, flat.argsort(stable=True))


def moe_dispatch_reference(x: Tensor, order: Tensor, k: int) -> Tensor:
    """`moe_dispatch` in PyTorch."""
    _check_dispatch(x, order, k)
    return x[order // k]


def moe_combine_reference(y: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """`moe_combine` in PyTorch."""
    _check_combine(y, weights, order)
    rows = _widen(y)[_invert(order)].view(*weights.shape, y.shape[1])
    return (rows * _widen(weights).unsqueeze(2)).sum(1).to(y.dtype)


def _route_backward(grad_weights: Tensor, logits: Tensor, experts: Tensor) -> Tensor:
    weights = _widen(logits).gather(1, experts).softmax(1)
    weighted = weights * _widen(grad_weights)
    gradient = weighted - weights * weighted.sum(1, keepdim=True)
    return torch.zeros_like(logits, memory_format=torch.contiguous_format).scatter(
        1, experts, gradient.to(logits.dtype)
    )


def _dispatch_backward(grad_output: Tensor, order: Tensor, k: int) -> Tensor:
    rows = _widen(grad_output)[_invert(order)]
    return rows.view(len(order) // k, k, grad_output.shape[1]).sum(1).to(grad_output.dtype)


def _combine_backward(grad_output: Tensor, y: Tensor, weights: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    grad = _widen(grad_output)[order // weights.shape[1]]
    grad_y = grad * _widen(weights).flatten()[order].unsqueeze(1)
    grad_weights = (grad * _widen(y)).sum(1)[_invert(order)].view(weights.shape)
    return grad_y.to(y.dtype), grad_weights.to(y.dtype)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in REDUCED else x


def _invert(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))


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


def _check_dispatch(x: Tensor, order: Tensor, k: int) -> None:
    if x.dim() != 2:
        raise ValueError(f"moe_dispatch: x has shape {list(x.shape)}, expected (T, C)")
    _check_floating("moe_dispatch", "x", x)
    _check_k("moe_dispatch", k)
    _check_order("moe_dispatch", order, x.shape[0] * k, "x", x)


def _check_combine(y: Tensor, weights: Tensor, order: Tensor) -> None:
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
    _check_order("moe_combine", order, y.shape[0], "y", y)


def _check_order(op: str, order: Tensor, length: int, other_name: str, other: Tensor) -> None:
    if order.dim() != 1 or order.shape[0] != length:
        raise ValueError(
            f"{op}: order has shape {list(order.shape)}, expected [{length}] "
            f"to fit {other_name} of shape {list(other.shape)}"
        )
    if order.dtype != torch.int64:
        raise TypeError(f"{op}: order of shape {list(order.shape)} has dtype {order.dtype}, expected torch.int64")
    _check_device(op, "order", order, other_name, other)


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


register_fallback("moe_route", "(Tensor logits, int k) -> (Tensor, Tensor, Tensor, Tensor)", moe_route_reference)
register_fallback(
    "moe_route_backward", "(Tensor grad_weights, Tensor logits, Tensor experts) -> Tensor", _route_backward
)
register_fallback("moe_dispatch", "(Tensor x, Tensor order, int k) -> Tensor", moe_dispatch_reference)
register_fallback("moe_dispatch_backward", "(Tensor grad_output, Tensor order, int k) -> Tensor", _dispatch_backward)
register_fallback("moe_combine", "(Tensor y, Tensor weights, Tensor order) -> Tensor", moe_combine_reference)
register_fallback(
    "moe_combine_backward",
    "(Tensor grad_output, Tensor y, Tensor weights, Tensor order) -> (Tensor, Tensor)",
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
        logits.new_empty((tokens * k,), dtype=torch.int64),
    )


@torch.library.register_fake("detrx::moe_route_backward")
def _fake_route_backward(grad_weights, logits, experts):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("detrx::moe_dispatch")
def _fake_dispatch(x, order, k):
    _check_dispatch(x, order, k)
    return x.new_empty((x.shape[0] * k, x.shape[1]))


@torch.library.register_fake("detrx::moe_dispatch_backward")
def _fake_dispatch_backward(grad_output, order, k):
    return grad_output.new_empty((grad_output.shape[0] // k, grad_output.shape[1]))


@torch.library.register_fake("detrx::moe_combine")
def _fake_combine(y, weights, order):
    _check_combine(y, weights, order)
    return y.new_empty((weights.shape[0], y.shape[1]))


@torch.library.register_fake("detrx::moe_combine_backward")
def _fake_combine_backward(grad_output, y, weights, order):
    return y.new_empty(y.shape), weights.new_empty(weights.shape)


def _setup_route(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _autograd_route(ctx, grad_weights, *_):
    return torch.ops.detrx.moe_route_backward(grad_weights, *ctx.saved_tensors), None


def _setup_dispatch(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.k = inputs[2]


def _autograd_dispatch(ctx, grad_output):
    return torch.ops.detrx.moe_dispatch_backward(grad_output, *ctx.saved_tensors, ctx.k), None, None


def _setup_combine(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _autograd_combine(ctx, grad_output):
    return *torch.ops.detrx.moe_combine_backward(grad_output, *ctx.saved_tensors), None


torch.library.register_autograd("detrx::moe_route", _autograd_route, setup_context=_setup_route)
torch.library.register_autograd("detrx::moe_dispatch", _autograd_dispatch, setup_context=_setup_dispatch)
torch.library.register_autograd("detrx::moe_combine", _autograd_combine, setup_context=_setup_combine)
