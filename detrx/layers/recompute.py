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
    """Whether the backward pass is running a layer again. A layer must not record anything about the step then."""
    return _RECOMPUTING.get()


def run_layer(layer: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Return `layer(*inputs)`; with `recompute`, its activations are recomputed in the backward pass instead of kept.

    Inputs may be dataclasses with tensors. Both runs draw the same random numbers.
    """
    if not (recompute and torch.is_grad_enabled()):
        return layer(*inputs)

    # `checkpoint` saves the random state of the devices of its tensor arguments, but does not look into dataclasses.
    def run(_: Tensor, *inputs: Any) -> Any:
        return layer(*inputs)

    of_device = first_tensor(inputs).new_empty(0)
    return checkpoint(run, of_device, *inputs, use_reentrant=False, context_fn=_contexts)


def first_tensor(inputs: Sequence[Any]) -> Tensor:
    """The first tensor among the inputs of a layer, or in the dataclasses among them.

    Raises:
        TypeError: there is no tensor.
    """
    for each in inputs:
        values = [getattr(each, field.name) for field in fields(each)] if is_dataclass(each) else [each]
        for value in values:
            if isinstance(value, Tensor):
                return value
    raise TypeError(f"a layer to be recomputed needs a tensor in its inputs, got {[type(x).__name__ for x in inputs]}")


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first and the second run."""
    return nullcontext(), _recomputing()


@contextmanager
def _recomputing() -> Iterator[None]:
    token = _RECOMPUTING.set(True)
    try:
        yield
    finally:
        _RECOMPUTING.reset(token)
