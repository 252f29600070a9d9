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
        self._pairs: _Pairs | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the values of ``model``, whose parameters and buffers are the same tensors every
        time (after :meth:`reset` and :meth:`load_state_dict` they may be others)."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.warmup)) if self.warmup else self.decay
        if self._pairs is None or self._pairs.model is not model:
            self._pairs = _Pairs(self.model, model)
        torch._foreach_lerp_(self._pairs.averages, self._pairs.values, 1 - decay)
        for counter, value in self._pairs.counters:
            counter.copy_(value)

    def reset(self, model: nn.Module) -> None:
        """Restart the averages from the values of ``model``."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0
        self._pairs = None

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model.load_state_dict(state_dict["model"])
        self.updates = state_dict["updates"]
        self._pairs = None


class _Pairs:
    """The tensors of an average and of the model that it follows; to list them takes as long as to average them.

    Attributes:
        averages, values: floating-point tensors of both, in the same order.
        counters: pairs of the other tensors.
    """

    def __init__(self, average: nn.Module, model: nn.Module):
        self.model = model
        source = dict(_tensors(model))
        pairs = [(tensor, source[name]) for name, tensor in _tensors(average)]
        self.averages = [tensor for tensor, _ in pairs if tensor.is_floating_point()]
        self.values = [value for tensor, value in pairs if tensor.is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer once, even if modules share it."""
    yield from model.named_parameters()
    yield from model.named_buffers()
