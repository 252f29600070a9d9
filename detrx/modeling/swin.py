"""Swin transformers as published, where timm's differ. Imported only where timm is there."""

from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedSwinBlock(SwinTransformerBlock):
    """A Swin block that pads maps to full windows before it shifts them.

    timm shifts first, so that rows wrapped around lie in front of the padding, and maps whose sizes are no multiples of
    the window get other values than from the published models.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        window_height, window_width = self.window_size
        x = F.pad(x, (0, 0, 0, -width % window_width, 0, -height % window_height))
        return super()._attn(x)[:, :height, :width]


def pad_before_shift(body: nn.Module) -> None:
    """Make every Swin block in `body` a `PaddedSwinBlock`."""
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = PaddedSwinBlock
