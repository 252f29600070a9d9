"""Datasets over lists, and mapped datasets."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

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
        return pickle.loads(self._bytes[begin : self._ends[idx].item()].numpy().data)


class MapDataset(Dataset):
    """A function applied to every element of a dataset. Where it returns None, random other elements are tried."""

    def __init__(self, dataset: Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = map_func
        self._rng = random.Random(42)
        self._candidates = set(range(len(self)))

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare its length

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
