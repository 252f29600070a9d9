"""Registered datasets as dataset dicts, and loaders over them."""

from __future__ import annotations

import itertools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detrx.d2.embedded import comm
from detrx.d2.embedded.data_catalog import DatasetCatalog, MetadataCatalog
from detrx.d2.embedded.data_datasets import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from detrx.d2.embedded.data_samplers import InferenceSampler, TrainingSampler
from detrx.d2.embedded.env import seed_all_rng
from detrx.errors import InvalidInputError

logger = logging.getLogger(__name__)


def get_detection_dataset_dicts(
    names: str | list[str], filter_empty: bool = True, *, check_consistency: bool = True
) -> list[dict]:
    """The dataset dicts of one or several registered datasets, one after the other.

    Args:
        filter_empty: leave out images without an object that is not a crowd.
        check_consistency: check that the datasets have the same classes and that no annotation has another one.

    Raises:
        KeyError: a name is not registered.
        ValueError: the datasets have different classes.
        AssertionError: a dataset is empty, nothing is left of it, or a ``category_id`` is out of range.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "No dataset is named"
    parts = [DatasetCatalog.get(name) for name in names]
    for name, part in zip(names, parts, strict=True):
        assert len(part), f"Dataset {name!r} is empty"
    dicts = list(itertools.chain.from_iterable(parts))
    if "annotations" not in dicts[0]:
        return dicts

    if filter_empty:
        loaded = len(dicts)
        dicts = [d for d in dicts if any(a.get("iscrowd", 0) == 0 for a in d["annotations"])]
        logger.info("Removed %d images without objects; %d images left", loaded - len(dicts), len(dicts))
    if check_consistency:
        _check_classes(names, dicts)
    assert dicts, f"No image of {', '.join(names)} has an object"
    return dicts


def _check_classes(names: list[str], dicts: list[dict]) -> None:
    """Compare the classes of the datasets with each other and with the annotations; log how often each occurs."""
    classes = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    if any(c is None for c in classes):
        return
    for name, other in zip(names, classes, strict=True):
        if other != classes[0]:
            raise InvalidInputError(f"Dataset {name!r} has the classes {other}, {names[0]!r} has {classes[0]}")
    counts = Counter(a["category_id"] for d in dicts for a in d["annotations"] if not a.get("iscrowd", 0))
    unknown = sorted(set(counts) - set(range(len(classes[0]))))
    assert not unknown, f"category_id={unknown[0]} occurs in {', '.join(names)} with {len(classes[0])} classes"
    logger.info("Objects: %s", ", ".join(f"{name} {counts[k]}" for k, name in enumerate(classes[0])))


def build_detection_train_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: int | None = None,
    **loader_options: Any,
) -> Iterable[list]:
    """An endless iterable of batches, lists of what ``mapper`` returns.

    Args:
        dataset: dataset dicts, or a map-style dataset.
        mapper: from a dataset dict to what the model takes; None for the dict itself.
        sampler: default `TrainingSampler`.
        total_batch_size: images per batch over all ranks.
        aspect_ratio_grouping: see `AspectRatioGroupedDataset`.
        seed: of the workers' random numbers.
        loader_options: for ``torch.utils.data.DataLoader``.
    """
    dataset = _mapped(dataset, mapper)
    sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
    world_size = comm.get_world_size()
    assert total_batch_size > 0 and total_batch_size % world_size == 0, (
        f"The total batch size {total_batch_size} is not a multiple of the number of processes, {world_size}"
    )
    batch_size = total_batch_size // world_size
    dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    options = dict(
        worker_init_fn=worker_init_reset_seed, generator=generator, num_workers=num_workers, **loader_options
    )
    if aspect_ratio_grouping:  # the loader then yields single samples
        return AspectRatioGroupedDataset(DataLoader(dataset, collate_fn=operator.itemgetter(0), **options), batch_size)
    options = {"drop_last": True, "collate_fn": trivial_batch_collator, **options}
    return DataLoader(dataset, batch_size=batch_size, **options)


def build_detection_test_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """Every sample once over all ranks (`InferenceSampler`), in batches. Arguments as for the train loader."""
    dataset = _mapped(dataset, mapper)
    sampler = InferenceSampler(len(dataset)) if sampler is None else sampler
    collate_fn = collate_fn or trivial_batch_collator
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)


def _mapped(dataset: list[dict] | Dataset, mapper: Callable[[dict], Any] | None) -> Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def trivial_batch_collator(batch: list) -> list:
    """The list of samples as it is."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed torch, numpy and Python in a worker process from the seed that the ``DataLoader`` gave it."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
