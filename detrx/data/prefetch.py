"""Bringing the batches of a training to its device."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batch import map_tensors

__all__ = ["Prefetcher"]

Batch = list[dict[str, Any]]


@dataclass
class _Loaded:
    batch: Batch
    copies: list[Tensor]
    waited: float
    error: Exception | None = None


class Prefetcher(Iterator[Batch]):
    """The batches of a loader, with images and instances on the device. One is copied while the GPU works on another.

    :meth:`prefetch` takes the next batch from the loader and starts its copies, on a stream of their own; it is to be
    called when the work on the present batch has been handed to the GPU. The following ``next()`` returns at once, and
    lets the current stream wait for the copies. What a loader raises is raised by the ``next()`` that asks for it.

    With another device than a GPU, batches come as the loader gives them, when they are asked for.

    Args:
        loader: of batches, lists of dicts. Where its tensors are not in pinned memory they are copied there first.
        device: of the model.

    Attributes:
        waited: seconds that the host waited for the loader to give the last batch, whenever this was.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device):
        self._loader = iter(loader)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: _Loaded | None = None
        self.waited = 0.0

    def prefetch(self) -> None:
        """Begin with the next batch, unless that has been done."""
        if self._stream is not None and self._ahead is None:
            self._ahead = self._load()

    def __next__(self) -> Batch:
        loaded, self._ahead = self._ahead or self._load(), None
        self.waited = loaded.waited
        if loaded.error is not None:
            raise loaded.error
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for copy in loaded.copies:
                copy.record_stream(current)  # its memory is of the other stream, and must not be reused too early
        return loaded.batch

    def _load(self) -> _Loaded:
        start = time.perf_counter()
        try:
            batch = next(self._loader)
        except Exception as error:  # StopIteration, too
            return _Loaded([], [], time.perf_counter() - start, error)
        waited = time.perf_counter() - start
        if self._stream is None:
            return _Loaded(batch, [], waited)
        copies: list[Tensor] = []

        def upload(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:
                return tensor
            copies.append(tensor.pin_memory().to(self._device, non_blocking=True))
            return copies[-1]

        with torch.cuda.stream(self._stream):
            return _Loaded(map_tensors(batch, upload), copies, waited)
