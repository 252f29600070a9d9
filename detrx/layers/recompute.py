"""Activation checkpointing of layers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_RECOMPUTING: ContextVar[bool] = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Whether a layer is being run for the second time, by the backward pass. What a layer notes down about a step it
    must not note then."""
    return _RECOMPUTING.get()


def run_layer(layer: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """`layer(*inputs)`; with `recompute` its activations are computed again in the backward pass, not kept."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False, context_fn=_contexts)
    return layer(*inputs)


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
