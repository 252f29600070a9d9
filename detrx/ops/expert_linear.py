"""One linear layer per expert over rows in expert order, without padding the experts to the largest.

Letters of the shapes: N rows, E experts, I input and O output channels. Where the GPU has a grouped GEMM this is one
kernel; elsewhere one GEMM per expert, for which the host reads the counts.
"""

import torch
from torch import Tensor

from detrx.ops._precision import autocast_to_reduced

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Elements of an oneDNN product, which is copied to its place: 8 MiB stay in the cache until then. Smaller blocks would
# mean more threaded calls, and these are slow where other processes keep the cores busy.
_BLOCK = 2**21
_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor, relu: bool = False) -> Tensor:
    """`x @ weight[e] + bias[e]` for the rows of each expert e, followed by a ReLU if `relu`: (N, O).

    Differentiable once, with respect to the three floating-point arguments, which share one dtype. Under autocast they
    are converted to its dtype.

    Args:
        x: (N, I): `counts[0]` rows of expert 0, then those of expert 1, ..., as `moe_dispatch` gives them.
        weight: (E, I, O).
        bias: (E, O).
        counts: (E,) int64, sums to N.

    Raises:
        ValueError: shapes or devices that do not fit together, or (where the host reads them) `counts` that do not
            sum to N.
        TypeError: dtypes that do not fit together.
    """
    x, weight, bias = autocast_to_reduced(x, weight, bias)
    _check_arguments(x, weight, bias, counts)
    return torch.ops.detrx.expert_linear(x, weight, bias, counts, relu)


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"expert_linear: x has shape {list(x.shape)}, expected (N, I)")
    if weight.dim() != 3 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"expert_linear: weight has shape {list(weight.shape)}, expected (E, {x.shape[1]}, O) "
            f"to fit x of shape {list(x.shape)} (N, I)"
        )
    experts, _, channels = weight.shape
    for name, tensor, shape in (("bias", bias, (experts, channels)), ("counts", counts, (experts,))):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"expert_linear: {name} has shape {list(tensor.shape)}, expected {list(shape)} "
                f"to fit weight of shape {list(weight.shape)} (E, I, O)"
            )
    if x.dtype not in _FLOATING:
        raise TypeError(f"expert_linear: x of shape {list(x.shape)} has dtype {x.dtype}, expected a floating-point one")
    for name, tensor, dtype in (("weight", weight, x.dtype), ("bias", bias, x.dtype), ("counts", counts, torch.int64)):
        if tensor.dtype != dtype:
            raise TypeError(
                f"expert_linear: {name} of shape {list(tensor.shape)} has dtype {tensor.dtype}, expected {dtype} "
                f"for x of shape {list(x.shape)}, {x.dtype}"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"expert_linear: {name} of shape {list(tensor.shape)} is on {tensor.device}, "
                f"x of shape {list(x.shape)} on {x.device}"
            )


def _has_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and x.shape[0] > 0
        and weight.shape[1] % 8 == 0  # rows of 16 bytes
        and weight.shape[2] % 8 == 0
        and hasattr(torch, "_grouped_mm")
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
    )


def _segments(counts: Tensor, x: Tensor) -> list[tuple[int, slice]]:
    """Expert and rows of each expert that has any."""
    segments, start = [], 0
    for expert, count in enumerate(counts.tolist()):
        if count < 0:
            raise ValueError(f"expert_linear: counts[{expert}] is {count}")
        if count > 0:
            segments.append((expert, slice(start, start + count)))
        start += count
    if start != len(x):
        raise ValueError(
            f"expert_linear: counts of shape {list(counts.shape)} sum to {start}, expected {len(x)}, "
            f"the rows of x of shape {list(x.shape)} (N, I)"
        )
    return segments


def _uses_onednn(x: Tensor) -> bool:
    """Whether float32 products go to oneDNN rather than, as in `torch.mm`, to MKL, which is half as fast on AMD."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.enabled and _ONEDNN_LINEAR


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None, relu: bool = False) -> None:
    """out = a (n, i) @ b (i, o) + bias (o,), and a ReLU."""
    if _uses_onednn(a):
        transposed, activation = b.t(), "relu" if relu else "none"
        rows = max(_BLOCK // max(b.shape[1], 1), 128)
        for a_rows, out_rows in zip(a.split(rows), out.split(rows), strict=True):
            out_rows.copy_(torch.ops.mkldnn._linear_pointwise(a_rows, transposed, bias, activation, [], ""))
        return
    if bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)
    if relu:
        out.relu_()


@torch.library.custom_op("detrx::expert_linear", mutates_args=())
def _expert_linear(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor, relu: bool) -> Tensor:
    _check_arguments(x, weight, bias, counts)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()  # oneDNN ignores the stride of a bias
    if _has_grouped_mm(x, weight):
        output = torch._grouped_mm(x, weight, offs=counts.cumsum(0, dtype=torch.int32))
        output += bias.repeat_interleave(counts, 0, output_size=len(x))
        return output.relu_() if relu else output
    output = x.new_empty((x.shape[0], weight.shape[2]))
    for expert, rows in _segments(counts, x):
        _product(x[rows], weight[expert], output[rows], bias[expert], relu)
    return output


@torch.library.custom_op("detrx::expert_linear_backward", mutates_args=())
def _expert_linear_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, counts: Tensor, rectified: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias. `rectified` is the output, if that went through a ReLU."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad_output.contiguous()
    if _has_grouped_mm(x, weight):
        if rectified is not None:
            grad = torch.ops.aten.threshold_backward(grad, rectified, 0)
        ends = counts.cumsum(0, dtype=torch.int32)
        experts = torch.arange(len(counts), device=x.device)
        grad_weight = torch._grouped_mm(x.t(), grad, offs=ends)
        grad_weight.masked_fill_((counts == 0).view(-1, 1, 1), 0)
        member = experts.unsqueeze(1) == experts.repeat_interleave(counts, output_size=len(x))
        return torch._grouped_mm(grad, weight.transpose(1, 2), offs=ends), grad_weight, member.to(grad.dtype) @ grad
    grad_x = torch.empty_like(x)
    grad_weight = weight.new_zeros(weight.shape)
    grad_bias = weight.new_zeros((weight.shape[0], weight.shape[2]))
    for expert, rows in _segments(counts, x):
        grad_rows = grad[rows]
        if rectified is not None:
            grad_rows = torch.ops.aten.threshold_backward(grad_rows, rectified[rows], 0)
        _product(grad_rows, weight[expert].t(), grad_x[rows])
        _product(x[rows].t(), grad_rows, grad_weight[expert])
        torch.sum(grad_rows, 0, out=grad_bias[expert])
    return grad_x, grad_weight, grad_bias


@_expert_linear.register_fake
def _fake(x, weight, bias, counts, relu):
    _check_arguments(x, weight, bias, counts)
    return x.new_empty((x.shape[0], weight.shape[2]))


@_expert_linear_backward.register_fake
def _fake_backward(grad_output, x, weight, counts, rectified):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty((weight.shape[0], weight.shape[2]))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, counts, relu = inputs
    ctx.save_for_backward(x, weight, counts, output if relu else None)


def _backward(ctx, grad_output):
    return *torch.ops.detrx.expert_linear_backward(grad_output, *ctx.saved_tensors), None, None


_expert_linear.register_autograd(_backward, setup_context=_setup_context)
