"""One linear layer per expert over rows in expert order, without padding all experts to the size of the largest.

Letters of the shapes: N rows, E experts, I input and O output channels. Where torch has a grouped matrix product
(`can_use_grouped_mm`), nothing is read on the host. Elsewhere there is one product per expert, and the host has to know
the number of rows of each.
"""

import functools
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.ops._extension import has_kernel
from detrx.ops._precision import autocast_to_reduced, reduced_dtype

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Elements of a product in oneDNN, which is then copied to its place: 8 MiB stay in the cache until then. Smaller blocks
# would mean more multi-threaded calls, which are slow while other processes use the cores.
_BLOCK = 2**21
_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, relu: bool = False) -> Tensor:
    """`x @ weight[e] + bias[e]` for the rows of each expert e, followed by a ReLU if `relu`: (N, O).

    Differentiable once, with respect to the three floating-point arguments, which share one dtype. Under autocast they
    are converted to its dtype.

    Args:
        x: (N, I): the rows of expert 0, then those of expert 1, ..., as `moe_dispatch` gives them.
        weight: (E, I, O).
        bias: (E, O).
        ends: (E,) int32, end of the rows of each expert (exclusive), as in `Routing.ends`: they do not decrease, and
            the last is N. On the device of `x`, or as returned by `expert_ends`.

    Raises:
        ValueError: shapes or devices do not fit together, or `ends` are not those of N rows (a device-side assertion
            where the host does not read them).
        TypeError: dtypes do not fit together.
    """
    x, weight, bias = autocast_to_reduced(x, weight, bias)
    _check_arguments(x, weight, bias, ends)
    return torch.ops.detrx.expert_linear(x, weight, bias, ends, relu)


def expert_ends(ends: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Copy `ends` to the host if `expert_linear` reads them there for these arguments; else return them unchanged.

    Layers over the same rows can share the result. Then the host waits for the device once, instead of once in each
    forward and backward pass of each layer.
    """
    if ends.is_meta or can_use_grouped_mm(x.device, reduced_dtype(x), *weight.shape):
        return ends
    return ends.cpu()


def can_use_grouped_mm(device: torch.device, dtype: torch.dtype, experts: int, inputs: int, outputs: int) -> bool:
    """Whether torch multiplies rows of `inputs` channels with weights (experts, inputs, outputs) in one kernel.

    Otherwise its `grouped_mm` raises an error or reads the number of rows of each expert on the host. The kernel
    addresses matrices in units of 16 bytes and uses one thread per expert.
    """
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and 0 < experts < 1024
        and all(channels > 0 and channels % 8 == 0 for channels in (inputs, outputs))
        and _knows_grouped_mm(device)
    )


@functools.cache
def _has_grouped_kernel(device: torch.device) -> bool:
    # Before grouped_mm was public, in torch 2.10, its requirements changed with every release.
    if not hasattr(F, "grouped_mm") or torch.version.cuda is None or sys.platform == "win32":
        return False
    return torch.cuda.get_device_capability(device) in ((9, 0), (10, 0))


# torch.compile would warn about the cache if it traced the function.
_knows_grouped_mm = torch.compiler.assume_constant_result(lambda device: _has_grouped_kernel(device))


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"expert_linear: x has shape {list(x.shape)}, expected (N, I)")
    if weight.dim() != 3 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"expert_linear: weight has shape {list(weight.shape)}, expected (E, {x.shape[1]}, O) "
            f"to fit x of shape {list(x.shape)} (N, I)"
        )
    experts, _, channels = weight.shape
    for name, tensor, shape in (("bias", bias, (experts, channels)), ("ends", ends, (experts,))):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"expert_linear: {name} has shape {list(tensor.shape)}, expected {list(shape)} "
                f"to fit weight of shape {list(weight.shape)} (E, I, O)"
            )
    if x.dtype not in _FLOATING:
        raise TypeError(f"expert_linear: x of shape {list(x.shape)} has dtype {x.dtype}, expected a floating-point one")
    for name, tensor, dtype in (("weight", weight, x.dtype), ("bias", bias, x.dtype), ("ends", ends, torch.int32)):
        if tensor.dtype != dtype:
            raise TypeError(
                f"expert_linear: {name} of shape {list(tensor.shape)} has dtype {tensor.dtype}, expected {dtype} "
                f"for x of shape {list(x.shape)}, {x.dtype}"
            )
        if tensor.device != x.device and not (name == "ends" and tensor.device.type == "cpu"):
            raise ValueError(
                f"expert_linear: {name} of shape {list(tensor.shape)} is on {tensor.device}, "
                f"x of shape {list(x.shape)} on {x.device}"
            )


@torch.library.custom_op("detrx::expert_linear", mutates_args=())
def _expert_linear(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, relu: bool) -> Tensor:
    _check_arguments(x, weight, bias, ends)
    if len(x) > 0 and can_use_grouped_mm(x.device, x.dtype, *weight.shape):
        return _grouped_linear(x, weight, bias, ends, relu)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()  # oneDNN ignores the stride of a bias
    output = x.new_empty((x.shape[0], weight.shape[2]))
    for expert, rows in _segments(ends, x):
        _product(x[rows], weight[expert], output[rows], bias[expert], relu)
    return output


@torch.library.custom_op("detrx::expert_linear_backward", mutates_args=())
def _expert_linear_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, ends: Tensor, rectified: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias. `rectified` is the output if there was a ReLU, else None."""
    if len(x) > 0 and can_use_grouped_mm(x.device, x.dtype, *weight.shape):
        return _grouped_linear_backward(grad_output, x, weight, ends, rectified)
    x, weight, grad = x.contiguous(), weight.contiguous(), grad_output.contiguous()
    if rectified is not None:
        grad = torch.ops.aten.threshold_backward(grad, rectified, 0)
    grad_x = torch.empty_like(x)
    grad_weight = weight.new_zeros(weight.shape)
    grad_bias = weight.new_zeros((weight.shape[0], weight.shape[2]))
    for expert, rows in _segments(ends, x):
        _product(grad[rows], weight[expert].t(), grad_x[rows])
        _product(x[rows].t(), grad[rows], grad_weight[expert])
        torch.sum(grad[rows], 0, out=grad_bias[expert])
    return grad_x, grad_weight, grad_bias


@_expert_linear.register_fake
def _fake(x, weight, bias, ends, relu):
    _check_arguments(x, weight, bias, ends)
    return x.new_empty((x.shape[0], weight.shape[2]))


@_expert_linear_backward.register_fake
def _fake_backward(grad_output, x, weight, ends, rectified):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty((weight.shape[0], weight.shape[2]))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, ends, relu = inputs
    ctx.save_for_backward(x, weight, ends, output if relu else None)


def _backward(ctx, grad_output):
    return *torch.ops.detrx.expert_linear_backward(grad_output, *ctx.saved_tensors), None, None


_expert_linear.register_autograd(_backward, setup_context=_setup_context)


# One product per expert.


def _segments(ends: Tensor, x: Tensor) -> list[tuple[int, slice]]:
    """Index and rows of each expert that has rows."""
    segments, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        if end < start:
            raise ValueError(f"expert_linear: ends[{expert}] is {end}, less than the {start} before it")
        if end > start:
            segments.append((expert, slice(start, end)))
        start = end
    if start != len(x):
        raise ValueError(
            f"expert_linear: ends of shape {list(ends.shape)} end with {start}, expected {len(x)}, "
            f"the rows of x of shape {list(x.shape)} (N, I)"
        )
    return segments


def _uses_onednn(x: Tensor) -> bool:
    """Whether float32 products use oneDNN instead of MKL, which `torch.mm` uses and which is half as fast on AMD."""
    enabled = bool(torch.backends.mkldnn.enabled)
    return x.device.type == "cpu" and x.dtype == torch.float32 and enabled and _ONEDNN_LINEAR


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None, relu: bool = False) -> None:
    """out = a (n, i) @ b (i, o) + bias (o,), followed by a ReLU if `relu`."""
    if _uses_onednn(a):
        transposed, activation = b.t(), "relu" if relu else "none"
        rows = max(_BLOCK // max(b.shape[1], 1), 128)
        for a_rows, out_rows in zip(a.split(rows), out.split(rows), strict=True):
            out_rows.copy_(torch.ops.mkldnn._linear_pointwise(a_rows, transposed, bias, activation, [], ""))
        return
    if bias is None:
        torch.mm(a, b, out=out)
    elif relu:
        torch._addmm_activation(bias, a, b, out=out)  # one kernel on GPUs
    else:
        torch.addmm(bias, a, b, out=out)


# One product for all experts, on GPUs; bias and ReLU have kernels of their own (csrc/moe/cuda/expert_bias.cu).


def _aligned(matrix: Tensor) -> Tensor:
    """Make a matrix contiguous, including the stride of a single row, and aligned to 16 bytes."""
    matrix = matrix.contiguous()
    fits = matrix.stride(-2) == matrix.shape[-1] and matrix.data_ptr() % 16 == 0
    return matrix if fits else matrix.clone(memory_format=torch.contiguous_format)


def _grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, relu: bool) -> Tensor:
    ends = ends.to(x.device, non_blocking=True)
    output = F.grouped_mm(_aligned(x), _aligned(weight), offs=ends)
    if has_kernel("_add_expert_bias_", x.device.type):
        torch.ops.detrx._add_expert_bias_(output, _aligned(bias), ends, relu)
        return output
    output += bias[_expert_of_rows(x, ends)]
    return output.relu_() if relu else output


def _grouped_linear_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, ends: Tensor, rectified: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    ends = ends.to(x.device, non_blocking=True)
    x, weight, grad = _aligned(x), _aligned(weight), _aligned(grad_output)
    has_kernels = has_kernel("_expert_bias_backward", x.device.type)
    if has_kernels:
        masked, sums = torch.ops.detrx._expert_bias_backward(grad, rectified, ends)
        grad = grad if rectified is None else masked
    elif rectified is not None:
        grad = torch.ops.aten.threshold_backward(grad, rectified, 0)
    grad_x = F.grouped_mm(grad, weight.transpose(1, 2), offs=ends)
    grad_weight = F.grouped_mm(x.t(), grad, offs=ends)
    if has_kernels:
        return grad_x, grad_weight, torch.ops.detrx._sum_expert_bias_(grad_weight, sums, ends)
    has_rows = ends.diff(prepend=ends.new_zeros(1)) > 0
    grad_weight.masked_fill_(~has_rows.view(-1, 1, 1), 0)  # the product does not write experts without rows
    is_of = torch.arange(len(ends), device=x.device).unsqueeze(1) == _expert_of_rows(x, ends)
    return grad_x, grad_weight, is_of.to(grad.dtype) @ grad


def _expert_of_rows(x: Tensor, ends: Tensor) -> Tensor:
    return torch.bucketize(torch.arange(len(x), device=x.device), ends, right=True)
