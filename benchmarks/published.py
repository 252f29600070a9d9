"""The algorithm of the published CUDA operator as a function with gradients: float32, on a GPU."""

import functools
import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

NAME = "published_ms_deform_attn"


@functools.cache
def extension() -> ModuleType:
    """The extension of published_ms_deform_attn.cu: one that was built before and lies beside it, or built now."""
    try:
        return importlib.import_module(NAME)
    except ModuleNotFoundError:
        return build()


def build(folder: Path | None = None) -> ModuleType:
    """Compile it, in a folder that exists (by default torch's own for extensions), and load it."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name(f"{NAME}.cu")
    where = {} if folder is None else {"build_directory": str(folder)}
    return load(NAME, [str(source)], extra_cuda_cflags=["-O3"], **where)


class Published(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return extension().forward(*inputs)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        value, locations, weights = extension().backward(grad_output, *ctx.saved_tensors)
        return value, None, None, locations, weights
