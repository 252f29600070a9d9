"""Exponential moving average of a model."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from detrx.errors import InvalidInputError

__all__ = ["ModelEMA"]


class ModelEMA:
    """A copy of a model whose parameters and floating-point buffers are moving averages of the model's.

    After update n (from 1), ``average = d * average + (1 - d) * model`` with ``d = decay * (1 - exp(-n / warmup))``, or
    ``d = decay`` without warm-up. Other buffers (counters) are copied.

    Args:
        model: not wrapped by DistributedDataParallel.
        decay: in [0, 1).
        warmup: number of updates after which the decay has reached 63 % of its value; 0: it is constant.

    Attributes:
        model: the average, in evaluation mode.
        updates: number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: int = 0):
        if not 0 <= decay < 1:
            raise InvalidInputError(f"the EMA decay must be in [0, 1), got {decay}")
        if warmup < 0:
            raise InvalidInputError(f"the EMA warm-up must be 0 or more updates, got {warmup}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.warmup = warmup
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the values of ``model``."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.warmup)) if self.warmup else self.decay
        source = dict(_tensors(model))
        pairs = [(average, source[name]) for name, average in _tensors(self.model)]
        averages = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in averages], [value for _, value in averages], 1 - decay)
        for counter, value in pairs:
            if not counter.is_floating_point():
                counter.copy_(value)

    def reset(self, model: nn.Module) -> None:
        """Restart the averages from the values of ``model``."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model.load_state_dict(state_dict["model"])
        self.updates = state_dict["updates"]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer once, even if modules share it."""
    yield from model.named_parameters()
    yield from model.named_buffers()
