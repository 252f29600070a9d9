"""Batch norm that is not trained. Needs timm and torchvision."""

import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class FusedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """torchvision's frozen batch norm in one pass over the input, in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """`module` with every batch norm in it replaced by a frozen one of the same statistics and weights."""
    module = freeze_batch_norm_2d(module)
    if type(module) is FrozenBatchNorm2d:
        fused = FusedFrozenBatchNorm2d(len(module.get_buffer("weight")), module.eps)
        fused.load_state_dict(module.state_dict())
        return fused
    for name, child in module.named_children():
        module.add_module(name, freeze_batch_norm(child))
    return module
