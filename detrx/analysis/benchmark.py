"""Speed of inference of several detectors, in the same settings, in turns."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.export import DetectionGraph
from detrx.modeling import as_detection_transformer

from .timing import interleaved_times

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Setting:
    """How detectors are called.

    Attributes:
        batch_size: images per call.
        size: height and width of random images that are on the device already; None: images are taken from the data
            loader, in the time that is measured.
        dtype: float32, or the dtype of autocast.
        compiler: backend of `torch.compile`; None: not compiled.
    """

    batch_size: int
    size: tuple[int, int] | None
    dtype: str
    compiler: str | None

    def __str__(self) -> str:
        images = "loader" if self.size is None else "x".join(map(str, self.size))
        return f"{self.batch_size} x {images}, {self.dtype}, {self.compiler or 'not compiled'}"


def settings(
    batch_sizes: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    compilers: Sequence[str | None],
    data_loader: bool,
) -> list[Setting]:
    """All combinations. With `data_loader` also those of images from the data loader, whose sizes differ: these are not
    compiled."""
    fixed = itertools.product(batch_sizes, sizes, dtypes, compilers)
    loaded = itertools.product(batch_sizes, [None], dtypes, [None]) if data_loader else ()
    return [Setting(*each) for each in (*fixed, *loaded)]


def call_of(model: nn.Module, inputs: Tensor | Iterator[Any], compiler: str | None) -> Callable[[], Any]:
    """A function that detects in one batch: in images (B, 3, H, W), or in the next of some batches.

    Raises:
        ValueError: images are given, and the model is not a `DetectionTransformer`.
    """
    if not isinstance(inputs, Tensor):
        return lambda: model(next(inputs))
    graph = DetectionGraph(as_detection_transformer(model))
    detect = graph if compiler is None else torch.compile(graph, backend=compiler, dynamic=False)
    return lambda: detect(inputs)


def autocast(device: str, dtype: str) -> AbstractContextManager:
    device_type = torch.device(device).type
    return nullcontext() if dtype == "float32" else torch.autocast(device_type, getattr(torch, dtype))


@torch.no_grad()
def benchmark(
    models: Mapping[str, nn.Module],
    setting: Setting,
    baseline: str,
    rounds: int,
    device: str,
    batches: Mapping[str, Iterator[Any]] | None = None,
    tick: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    """Time the detectors in one setting, in turns, after a call of each to warm up.

    Args:
        models: by name, in evaluation mode.
        baseline: the one of them that others are compared with.
        batches: of each model, without end; for settings without a size.
        tick: called after every call, `rounds` + 1 times for each model.

    Returns:
        For each model a dict: `model`, the setting, `median_ms`, `p10_ms` and `p90_ms` of a call, `images_per_s` at the
        median, `times_baseline` (its median as a multiple of the baseline's) and all `times_ms`.
    """
    images = None
    if setting.size is not None:
        images = torch.randint(256, (setting.batch_size, 3, *setting.size), dtype=torch.uint8, device=device)
    if setting.compiler is not None:
        torch.compiler.reset()  # what was compiled for other sizes and dtypes
    functions = {
        name: call_of(model, (batches or {})[name] if images is None else images, setting.compiler)
        for name, model in models.items()
    }
    with autocast(device, setting.dtype):
        times = interleaved_times(functions, rounds, device, tick=tick)
    reference = float(np.median(times[baseline]))
    rows = []
    for name, each in times.items():
        p10, median, p90 = (float(value) for value in np.percentile(each, [10, 50, 90]))
        rows.append(
            {
                "model": name,
                "batch_size": setting.batch_size,
                "size": None if setting.size is None else list(setting.size),
                "data_loader": setting.size is None,
                "dtype": setting.dtype,
                "compiler": setting.compiler,
                "median_ms": median,
                "p10_ms": p10,
                "p90_ms": p90,
                "images_per_s": 1e3 * setting.batch_size / median,
                "times_baseline": median / reference,
                "times_ms": each,
            }
        )
    return rows


def endless(loader: Iterable[list[Any]], batch_size: int) -> Iterator[list[Any]]:
    """The full batches of a data loader, again and again.

    Raises:
        ValueError: there is none.
    """
    while True:
        full = 0
        for batch in loader:
            if len(batch) == batch_size:
                full += 1
                yield batch
        if not full:
            raise InvalidInputError(
                f"the dataset of the data loader has fewer images than {batch_size}, the batch size"
            )
