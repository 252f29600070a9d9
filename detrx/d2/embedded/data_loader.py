"""Registered datasets as dataset dicts, and the test loader over them."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from detrx.d2.embedded.data_catalog import DatasetCatalog, MetadataCatalog
from detrx.d2.embedded.data_datasets import DatasetFromList, MapDataset
from detrx.d2.embedded.data_samplers import InferenceSampler
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


def build_detection_test_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """Every sample once over all ranks, in batches.

    Args:
        dataset: dataset dicts, or a map-style dataset.
        mapper: from a dataset dict to what the model takes; None for the dict itself.
        sampler: default `InferenceSampler`.
        collate_fn: makes a batch of a list of samples; default: the list as it is.
    """
    dataset = _mapped(dataset, mapper)
    if sampler is None:
        sampler = InferenceSampler(len(dataset))  # type: ignore[arg-type]  # torch's Dataset does not declare its length
    collate_fn = collate_fn or _as_it_is
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)


def _mapped(dataset: list[dict] | Dataset, mapper: Callable[[dict], Any] | None) -> Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _as_it_is(batch: list) -> list:
    return batch
