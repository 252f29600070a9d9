"""Activation checkpointing of layers."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_RECOMPUTING: ContextVar[bool] = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Whether a layer is being run for the second time, by the backward pass. What a layer notes down about a step it
    must not note then."""
    return _RECOMPUTING.get()


def run_layer(layer: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """`layer(*inputs)`; with `recompute` its activations are computed again in the backward pass, not kept.

    Inputs may be dataclasses with tensors. The second run draws the same random numbers as the first one.
    """
    if not (recompute and torch.is_grad_enabled()):
        return layer(*inputs)

    # `checkpoint` keeps the random state of those devices that its own arguments are on, and does not look into them.
    def run(_: Tensor, *inputs: Any) -> Any:
        return layer(*inputs)

    of_device = first_tensor(inputs).new_empty(0)
    return checkpoint(run, of_device, *inputs, use_reentrant=False, context_fn=_contexts)


def first_tensor(inputs: Sequence[Any]) -> Tensor:
    """The first tensor among the inputs of a layer, or in the dataclasses among them.

    Raises:
        TypeError: there is none.
    """
    for each in inputs:
        values = [getattr(each, field.name) for field in fields(each)] if is_dataclass(each) else [each]
        for value in values:
            if isinstance(value, Tensor):
                return value
    raise TypeError(f"a layer to be recomputed needs a tensor in its inputs, got {[type(x).__name__ for x in inputs]}")


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of the first run, and of the second."""
    return nullcontext(), _recomputing()


@contextmanager
def _recomputing() -> Iterator[None]:
    token = _RECOMPUTING.set(True)
    try:
        yield
    finally:
        _RECOMPUTING.reset(token)
