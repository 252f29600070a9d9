"""Routers, which decide which queries pass: the learned router, and fixed ones for measurements and tests."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.modeling import DetectionTransformer


class QueryRouter(nn.Linear):
    """Eqs. 5 and 6: score = Q W_R and sigma = max(sigmoid(score)). A query passes if the score of passing is larger
    than or equal to that of bypassing.

    Args:
        embed_dim: number C of channels.
        pass_column: the column of W_R that scores passing, 0 or 1; the other one scores bypassing.
    """

    def __init__(self, embed_dim: int, pass_column: int = 1):
        if pass_column not in (0, 1):
            raise InvalidInputError(f"pass_column must be 0 or 1, got {pass_column!r}")
        super().__init__(embed_dim, 2, bias=False)
        self.pass_column = pass_column

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, N, C) -> mask (B, N) bool of the passing ones, and sigma (B, N) float32.

        Computed in float32 even under autocast, so that rounding does not change the decision.
        """
        with nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
            score = F.linear(q.float(), self.weight.float())
        passes = score[..., self.pass_column] >= score[..., 1 - self.pass_column]
        return passes, score.sigmoid().max(dim=-1).values


class FixedRouter(nn.Module):
    """Always lets the same queries pass, with sigma = 1.

    Args:
        passing: fraction of passing queries, in [0, 1], evenly spread; or a bool mask (N,) or (B, N).
    """

    def __init__(self, passing: float | Tensor):
        super().__init__()
        is_mask = isinstance(passing, Tensor)
        if is_mask and (passing.dtype != torch.bool or passing.ndim not in (1, 2)):
            raise InvalidInputError(
                f"FixedRouter: a mask must be bool and (N,) or (B, N), got {passing.dtype} {list(passing.shape)}"
            )
        if not is_mask and not 0 <= passing <= 1:
            raise InvalidInputError(f"FixedRouter: the passing part must be in [0, 1], got {passing}")
        self.part = None if is_mask else float(passing)
        self.register_buffer("mask", passing if is_mask else None, persistent=False)

    def reset_parameters(self) -> None:
        """Does nothing: there are no parameters."""

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """See `QueryRouter`.

        Raises:
            ValueError: the shape of the mask does not fit the queries.
        """
        if self.part is not None:
            steps = (torch.arange(q.shape[1] + 1, device=q.device) * self.part).floor()
            mask = steps[1:] > steps[:-1]
        else:
            mask = self.mask
            if mask.shape[-1] != q.shape[1] or (mask.ndim == 2 and mask.shape[0] != q.shape[0]):
                raise InvalidInputError(
                    f"FixedRouter: the mask is {list(mask.shape)}, but there are {q.shape[0]} images of {q.shape[1]} "
                    "queries, those of all groups together"
                )
        return mask.expand(q.shape[:2]), torch.ones(q.shape[:2], device=q.device)


def force_routers(model: DetectionTransformer, passing: float | Tensor | Sequence[float | Tensor]) -> None:
    """Replace the routers of all decoder layers by fixed ones.

    Args:
        model: a detector with routed layers.
        passing: see `FixedRouter`; or a list with one value per layer.

    Raises:
        ValueError: a layer has no router, or the length of the list is not the number of layers.
    """
    layers = model.decoder.layers
    values = list(passing) if isinstance(passing, Sequence) else [passing] * len(layers)
    if len(values) != len(layers):
        raise InvalidInputError(f"force_routers: {len(values)} values for {len(layers)} decoder layers")
    for index, (layer, value) in enumerate(zip(layers, values, strict=True)):
        if getattr(layer, "router", None) is None:
            raise InvalidInputError(
                f"force_routers: decoder layer {index} has no router; add QueryRouting to model.methods"
            )
        layer.router = FixedRouter(value).to(model.device).train(layer.training)
