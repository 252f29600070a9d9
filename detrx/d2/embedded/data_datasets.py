"""Datasets over lists, mapped datasets, and the step from samples to an endless stream of batches."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

logger = logging.getLogger(__name__)


class DatasetFromList(Dataset):
    """A list as a dataset, held as one tensor of pickles; every element given out is a new copy.

    Worker processes share its memory, forked or spawned; a list of Python objects would be copied into each of them
    page by page, because reading an object writes its reference count.
    """

    def __init__(self, lst: list, copy: bool = True):
        """``copy`` is accepted because Detectron2 has it: unpickling copies either way."""
        pickles = [pickle.dumps(item, protocol=-1) for item in lst]
        self._ends = torch.tensor([len(p) for p in pickles], dtype=torch.int64).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(pickles)), dtype=torch.uint8)
        logger.info("Packed %d dataset dicts into %.2f MiB", len(pickles), len(self._bytes) / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        idx = range(len(self))[idx]
        begin = self._ends[idx - 1].item() if idx > 0 else 0
        return pickle.loads(memoryview(self._bytes[begin : self._ends[idx].item()].numpy()))


class MapDataset(Dataset):
    """A function applied to every element of a dataset. Where it returns None, random other elements are tried."""

    def __init__(self, dataset: Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = map_func
        self._rng = random.Random(42)
        self._candidates = set(range(len(dataset)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current = int(idx)
        mapped = self._map_func(self._dataset[current])
        while mapped is None:
            logger.warning("The mapper returned None for sample %d; another one takes its place", current)
            self._candidates.discard(current)
            if not self._candidates:
                raise RuntimeError(f"The mapper has returned None for all of the {len(self)} samples")
            current = self._rng.sample(list(self._candidates), k=1)[0]
            mapped = self._map_func(self._dataset[current])
        self._candidates.add(current)
        return mapped


class ToIterableDataset(IterableDataset):
    """A dataset in the order of a sampler, which then runs in the workers and not in the main process."""

    def __init__(self, dataset: Dataset, sampler: Sampler, *, shard_chunk_size: int = 1):
        """
        Args:
            sampler: cheap to iterate over; each of the W workers goes through all of it and loads one in W chunks.
            shard_chunk_size: indices per chunk; the batch size makes the batches independent of W.
        """
        assert isinstance(sampler, Sampler), f"Expected a Sampler, got {type(sampler).__name__}"
        self.dataset = dataset
        self.sampler = sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        for position, index in enumerate(self.sampler):
            if worker is None or position // self.shard_chunk_size % worker.num_workers == worker.id:
                yield self.dataset[index]


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of images that are either all wider than high or none of them is, which need less padding.

    Yields ``list[dict]`` of length ``batch_size``; the dicts of ``dataset`` have "width" and "height".
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: dict[bool, list[dict]] = {True: [], False: []}

    def __iter__(self) -> Iterator[list[dict]]:
        for sample in self.dataset:
            wide = sample["width"] > sample["height"]
            self._buckets[wide].append(sample)
            if len(self._buckets[wide]) == self.batch_size:
                batch, self._buckets[wide] = self._buckets[wide], []
                yield batch
