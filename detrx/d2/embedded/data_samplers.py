"""Which sample comes when. Every rank draws the same stream and takes its share, so ranks must agree on the seed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from detrx.d2.embedded import comm
from detrx.errors import InvalidInputError


class _InfiniteSampler(Sampler):
    """An endless stream of epochs, of which this rank yields the elements ``rank, rank + world_size, ...``.

    It does not look at the worker of a ``DataLoader``: samplers run in the main process.
    """

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> Tensor:
        """Indices of the next epoch, (n,) int64."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from self._epoch(generator).tolist()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_InfiniteSampler):
    """All samples once per epoch, in a new random order each time."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        """``seed`` must be the same on all ranks; None is a random one that they agree on."""
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler needs an int as size, got {type(size).__name__}")
        if size <= 0:
            raise InvalidInputError(f"TrainingSampler needs a positive size, got {size}")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(self._size, generator=generator) if self._shuffle else torch.arange(self._size)


class RepeatFactorTrainingSampler(_InfiniteSampler):
    """Each sample as often per epoch as its repeat factor says; fractions are rounded at random in each epoch."""

    def __init__(self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None):
        """``repeat_factors``: (number of samples,) float; the others as for `TrainingSampler`."""
        super().__init__(shuffle, seed)
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    def _epoch(self, generator: torch.Generator) -> Tensor:
        extra = torch.rand(len(self._fraction), generator=generator) < self._fraction
        repeats = (self._whole + extra).long()
        indices = torch.arange(len(repeats)).repeat_interleave(repeats)
        return indices[torch.randperm(len(indices), generator=generator)] if self._shuffle else indices

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """Factors that show rare categories more often (LVIS): an image has that of its rarest category.

        A category in a fraction ``f`` of the images has ``max(1, sqrt(repeat_thresh / f))``, without the root if
        not ``sqrt``.

        Returns:
            (number of images,) float32.
        """
        categories = [{a["category_id"] for a in record["annotations"]} for record in dataset_dicts]
        factors = {}
        for category, count in Counter(itertools.chain.from_iterable(categories)).items():
            ratio = repeat_thresh / (count / len(dataset_dicts))
            factors[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
        per_image = [max((factors[c] for c in present), default=1.0) for present in categories]
        return torch.tensor(per_image, dtype=torch.float32)


class InferenceSampler(Sampler):
    """Every sample exactly once over all ranks: rank r has the r-th of nearly equal consecutive parts."""

    def __init__(self, size: int):
        assert size > 0, f"InferenceSampler needs a positive size, got {size}"
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share, left = divmod(size, world_size)
        begin = rank * share + min(rank, left)
        self._local_indices = range(begin, begin + share + (rank < left))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
