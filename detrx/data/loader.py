"""Loaders: an infinite training loader that can start anywhere in its stream, and the test loader."""

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detrx.d2.data import (
    DatasetFromList,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    build_detection_test_loader,
)
from detrx.d2.utils import comm
from detrx.errors import InvalidInputError

from .batch import PinnableBatch

_SECONDS_AFTER_SIGTERM = 3

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class TrainLoader:
    """Infinite iterable of this process's batches, each a list of mapped dicts.

    All processes share one shuffled stream of samples, of which process r of n takes the samples r, r + n, r + 2n, ...
    What the mapper does at random depends only on the seed and on the position of the sample in that stream. So the
    batches are the same whatever `num_workers` is, and the same after `set_position`. The stream has no end, so that an
    iteration keeps its workers.

    Attributes:
        num_boxes: (images,), the annotated boxes of each image without crowds.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        mapper: Mapper,
        sampler: Iterable[int],
        batch_size: int,
        num_workers: int,
        aspect_ratio_grouping: bool,
        seed: int,
        prefetch_factor: int,
        pin_memory: bool = False,
    ) -> None:
        groups = [int(d["width"] <= d["height"]) for d in dataset] if aspect_ratio_grouping else [0] * len(dataset)
        self.num_boxes = np.array(
            [sum(not each.get("iscrowd") for each in d.get("annotations", ())) for d in dataset], dtype=np.int64
        )
        self._batches = _BatchSampler(sampler, groups, batch_size)
        self._samples = _MappedSamples(dataset, mapper, seed)
        self._num_workers = num_workers
        self._prefetch_factor = prefetch_factor if num_workers > 0 else None
        self._pin_memory = pin_memory

    def set_position(self, num_batches: int) -> None:
        """Let the next iteration begin after the first `num_batches` batches of this process, without loading them."""
        self._batches.skip = num_batches

    def file_name(self, index: int) -> str:
        """File of an image of the dataset."""
        return str(self._samples.records[index].get("file_name", "an image without a file name"))

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self._samples,
            batch_sampler=self._batches,
            num_workers=self._num_workers,
            collate_fn=PinnableBatch if self._pin_memory else _as_is,
            pin_memory=self._pin_memory,
            prefetch_factor=self._prefetch_factor,
            worker_init_fn=_outlive_stop_signals,
            generator=torch.Generator(),  # or it would draw a number from the global one
        )
        return iter(loader)


def build_train_loader(
    dataset: list[dict[str, Any]],
    mapper: Mapper,
    total_batch_size: int,
    num_workers: int = 0,
    aspect_ratio_grouping: bool = True,
    seed: int | None = None,
    repeat_threshold: float | None = None,
    prefetch_factor: int = 2,
    device: str = "cpu",
) -> TrainLoader:
    """Build the training loader of this process.

    Args:
        dataset: dataset dicts, with `width` and `height` if `aspect_ratio_grouping`.
        mapper: makes a model input of a dataset dict; may use the global generators of torch (CPU), numpy and random.
        total_batch_size: images per batch, over all processes.
        num_workers: worker processes of this process; 0 loads in the process itself.
        aspect_ratio_grouping: make batches of wide or of tall images only, so that they need less padding.
        seed: of order and augmentation; None or negative draws one, the same in all processes.
        repeat_threshold: repeat images with categories that occur in less than this fraction of images (LVIS).
        prefetch_factor: batches that each worker prepares ahead.
        device: of the model; for a GPU, images and instances are put into pinned memory.

    Raises:
        ValueError: `total_batch_size` is not a positive multiple of the number of processes.
    """
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        raise InvalidInputError(
            f"total_batch_size {total_batch_size} must be a positive multiple of {world_size} processes"
        )
    if seed is None or seed < 0:
        seed = comm.shared_random_seed()
    if repeat_threshold is None:
        sampler = TrainingSampler(len(dataset), seed=seed)
    else:
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, repeat_threshold)
        sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    batch_size = total_batch_size // world_size
    return TrainLoader(
        dataset,
        mapper,
        sampler,
        batch_size,
        num_workers,
        aspect_ratio_grouping,
        seed,
        prefetch_factor,
        pin_memory=_is_gpu(device),
    )


def build_test_loader(
    dataset: list[dict[str, Any]], mapper: Mapper, batch_size: int = 1, num_workers: int = 0, device: str = "cpu"
) -> DataLoader:
    """Loader of lists of `batch_size` mapped dicts: every image once, split over the processes. `device` is that of the
    model; for a GPU, images are put into pinned memory."""
    pin_memory = _is_gpu(device)
    loader = build_detection_test_loader(
        dataset,
        mapper=mapper,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=PinnableBatch if pin_memory else None,
    )
    loader.pin_memory = pin_memory
    return loader


def _is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda" and torch.cuda.is_available()


class _BatchSampler:
    """Batches of (index into the dataset, position in the stream of all processes)."""

    def __init__(self, sampler: Iterable[int], groups: list[int], batch_size: int) -> None:
        self.sampler, self.groups, self.batch_size = sampler, groups, batch_size
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()
        self.skip = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        pending: dict[int, list[tuple[int, int]]] = {group: [] for group in set(self.groups)}
        complete = 0
        for count, index in enumerate(self.sampler):
            batch = pending[self.groups[index]]
            batch.append((index, self.rank + count * self.world_size))
            if len(batch) == self.batch_size:
                complete += 1
                if complete > self.skip:
                    yield list(batch)
                batch.clear()


class _MappedSamples(Dataset):
    def __init__(self, dataset: list[dict[str, Any]], mapper: Mapper, seed: int) -> None:
        self.records = DatasetFromList(dataset, copy=False)  # one serialised block, shared by the workers
        self.mapper, self.seed = mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, position = key
        with random_state_of(self.seed, position):
            return self.mapper(self.records[index])


@contextlib.contextmanager
def random_state_of(seed: int, position: int) -> Iterator[None]:
    """Inside, the global CPU generators are in a state that depends on the arguments only; after, in their old one."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = [int(word) for word in np.random.SeedSequence([seed, position]).generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    torch.default_generator.manual_seed(words[2])  # torch.manual_seed would reset CUDA's generators as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _outlive_stop_signals(worker: int) -> None:
    """Ctrl-C and job schedulers signal all processes: the trainer then still needs the batches under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


def _as_is(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch
