"""The operators of detrx: compiled CPU and CUDA kernels under `torch.ops.detrx`, with PyTorch fallbacks."""

from detrx.ops._extension import extension_info, has_kernel, operators
from detrx.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

__all__ = ["extension_info", "has_kernel", "ms_deform_attn", "ms_deform_attn_reference", "operators"]
