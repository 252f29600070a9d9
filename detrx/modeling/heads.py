"""Class and box heads."""

import math

from torch import Tensor, nn

from detrx.layers import MLP, Linear
from detrx.layers.module_list import TypedModuleList

PRIOR_PROBABILITY = 0.01
"""Initial score of every class (focal loss, arXiv 1708.02002, section 3.3)."""


def class_head(embed_dim: int, num_classes: int) -> nn.Linear:
    head = Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


def box_head(embed_dim: int, initial_size_logit: float = 0.0) -> MLP:
    """Three layers whose initial output is 0 for the centre and `initial_size_logit` for width and height."""
    head = MLP(embed_dim, embed_dim, 4, 3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    nn.init.constant_(head.layers[-1].bias[2:], initial_size_logit)
    return head


class PredictionHeads(nn.Module):
    """One class head and one box head per decoder layer, or one of each for all.

    Attributes:
        quality_heads: of a subclass that predicts the quality of its predictions, as many as class heads; None here.

    Args:
        num_layers: decoder layers.
        shared: all layers use the same heads.
        initial_size_logit: initial width and height logit of the first layer's box head, relative to the reference: -2
            if references are points (boxes start at sigmoid(-2) = 0.12 of the image), 0 if they are boxes.
        no_object: add a last class logit for "no object", for a softmax over classes. Otherwise each class has a
            sigmoid.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_layers: int,
        shared: bool = False,
        initial_size_logit: float = 0.0,
        no_object: bool = False,
    ):
        super().__init__()
        count = 1 if shared else num_layers
        self.class_heads = TypedModuleList(
            nn.Linear(embed_dim, num_classes + 1) if no_object else class_head(embed_dim, num_classes)
            for _ in range(count)
        )
        self.box_heads = TypedModuleList(box_head(embed_dim, 0.0 if i else initial_size_logit) for i in range(count))
        self.quality_heads: TypedModuleList[nn.Linear] | None = None

    def forward(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """(B, N, C) -> logits (B, N, K or K + 1) and box deltas (B, N, 4) in logit space."""
        return self.classes(x, layer), self.boxes(x, layer)

    def classes(self, x: Tensor, layer: int) -> Tensor:
        return self.class_heads[layer % len(self.class_heads)](x)

    def boxes(self, x: Tensor, layer: int) -> Tensor:
        return self.box_heads[layer % len(self.box_heads)](x)

    def quality(self, x: Tensor, layer: int) -> Tensor | None:
        """(B, N, C) -> `Predictions.quality` (B, N, K) of a layer; None without `quality_heads`."""
        return None if self.quality_heads is None else self.quality_heads[layer % len(self.quality_heads)](x)
