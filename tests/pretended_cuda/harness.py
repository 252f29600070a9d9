"""The Python side of a GPU run, without a GPU.

Tensors say that they are on cuda:0 while their numbers lie on the CPU. What a GPU would refuse (tensors of two devices
in one call, a generator of the other device, products of integers, CPU memory read as numpy, ...) raises `DeviceError`,
autocast follows its rules for CUDA, and whenever the host would wait for the device, that is counted with its place.

    from tests.pretended_cuda.harness import on_pretended_cuda, waits

    @on_pretended_cuda
    def test_step(...):                       # fixtures and parameters as in any test; they must be picklable
        model = make_model().to("cuda")
        with waits() as found:
            losses = model(batch)
            sum(losses.values()).backward()
        assert found.count <= 3, found        # names the places: "1 x copy to the host at detrx/...py:189 < ..."

Pretending changes torch for good, so tests run in a process of their own, one per pytest process, which they share; it
is seeded before each of them. Nothing else can be seen from it: no monkeypatch of the test session, no captured logs.
Where nothing can pretend (see `build`) they are skipped.

What holds in it:

- "cuda", "cuda:0" and `torch.cuda` work as with one GPU. Its random state is another one than the host's.
- `t.pin_memory()`, `torch.empty(..., pin_memory=True)` and loaders with `pin_memory=True` give memory that is called
  pinned, as are its views. Copies to the device wait unless it is pinned and they are `non_blocking`.
- Copies to the host wait. With `non_blocking=True` (into new or pinned memory) they do not; then the tensor has NaN, or
  -77 where it has integers, until the host has waited, by an event, a stream, `torch.cuda.synchronize` or another copy.
- Streams: what one stream wrote another one may read after it has waited for it (`wait_stream`, `wait_event`), and
  raises `DeviceError` before. `Event.query()` is always True. `record_stream` does nothing.
- Operators of detrx with a compiled kernel for the CPU count as having one for CUDA; `without_kernels()` takes these
  away, so that their PyTorch code runs on the pretended tensors.
- Threads: what makes tensors of the device in another thread needs `with modes():` there. Backward passes run in the
  thread that calls them.
- It is a GPU of compute capability 9.0, with bfloat16.

It does not know the memory that a GPU would need, kernels that refuse shapes or strides, or any timing.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from detrx.d2 import USE_DETECTRON2

from .build import Unavailable, build_guard
from .dispatch import without_kernels
from .runtime import install, modes
from .waits import DeviceError, Waits, waits

__all__ = ["DeviceError", "Waits", "modes", "on_pretended_cuda", "pads_one_image", "waits", "without_kernels"]

pads_one_image = pytest.mark.skipif(
    USE_DETECTRON2, reason="Detectron2's ImageList changes a shape in place, which pretended tensors cannot"
)
"""Mark of tests in which a model gets one image."""


def on_pretended_cuda(test: Callable[..., None]) -> Callable[..., None]:
    """Decorates a test function of a module: it runs where there is a pretended GPU."""

    @functools.wraps(test)
    def elsewhere(*args: Any, **kwargs: Any) -> None:
        if reason := why_not():
            pytest.skip(reason)
        outcome, text = _process().submit(_run, test.__module__, test.__qualname__, args, kwargs).result()
        if outcome == "skipped":
            pytest.skip(text)
        if outcome == "failed":
            pytest.fail(text, pytrace=False)

    return elsewhere


@functools.cache
def why_not() -> str:
    """Why nothing can pretend to be a GPU here; empty where it can."""
    try:
        build_guard()
    except Unavailable as reason:
        return f"no pretended GPU: {reason}"
    return ""


@functools.cache
def _process() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start)
    atexit.register(pool.shutdown, cancel_futures=True)
    return pool


def _start() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a real GPU must not be touched
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def _run(module: str, name: str, args: tuple, kwargs: dict) -> tuple[str, str]:
    """In the other process: outcome and message of a test."""
    try:
        test = importlib.import_module(module)
        for part in name.split("."):
            test = getattr(test, part)
        install()
        with modes():
            torch.manual_seed(0)
            test.__wrapped__(*args, **kwargs)
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped)
    except BaseException:
        return "failed", traceback.format_exc()
    return "passed", ""
