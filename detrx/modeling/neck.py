"""Neck: maps the backbone's feature maps to a common number of channels, and adds coarser levels."""

from collections.abc import Sequence

from torch import Tensor, nn

from detrx.errors import InvalidInputError


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, which on a CPU computes maps channel by channel.

    torch's kernel for maps with the channels last takes about ten times as long there, forward and backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


class ChannelMapper(nn.Module):
    """A 1x1 convolution and GroupNorm per backbone level, and 3x3 convolutions of stride 2 for extra levels.

    Args:
        in_features: names of the backbone's maps to use, finest first.
        in_channels: number of channels of each map.
        out_channels: number C of channels of all outputs.
        num_levels: number of outputs. The first extra level is computed from the backbone's last map, each further one
            from the level before.
        num_groups: groups of the GroupNorm; None: no normalisation.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        out_channels: int,
        num_levels: int,
        num_groups: int | None = 32,
    ):
        super().__init__()
        if len(in_features) != len(in_channels):
            raise InvalidInputError(
                f"in_features {list(in_features)} and in_channels {list(in_channels)} differ in length"
            )
        if num_levels < len(in_features):
            raise InvalidInputError(f"num_levels is {num_levels}, but there are {len(in_features)} in_features")
        self.in_features = tuple(in_features)

        def block(channels: int, kernel_size: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            norms = [] if num_groups is None else [GroupNorm(num_groups, out_channels)]
            return nn.Sequential(conv, *norms)

        self.levels = nn.ModuleList(block(channels, 1, 1) for channels in in_channels)
        self.extra_levels = nn.ModuleList(
            block(in_channels[-1] if i == 0 else out_channels, 3, 2) for i in range(num_levels - len(in_features))
        )

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Maps by name, (B, C_l, H_l, W_l) -> `num_levels` maps (B, C, H_l, W_l)."""
        maps = [level(features[name]) for level, name in zip(self.levels, self.in_features, strict=True)]
        last = features[self.in_features[-1]]
        for level in self.extra_levels:
            last = level(last)
            maps.append(last)
        return maps
