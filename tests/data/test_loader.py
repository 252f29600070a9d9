import itertools
import random

import numpy as np
import pytest
import torch

from detrx.d2.utils import comm
from detrx.data import build_test_loader, build_train_loader

SIZES = [(40, 30), (30, 40), (50, 50), (60, 20)]  # width, height


def records(count=23):
    return [
        {"id": i, "width": SIZES[i % 4][0], "height": SIZES[i % 4][1], "annotations": [{"category_id": int(i == 0)}]}
        for i in range(count)
    ]


def mapper(record):
    """All sources of randomness that a mapper may use."""
    return (
        record["id"],
        float(torch.rand(())),
        float(np.random.rand()),  # noqa: NPY002
        random.random(),
    )


def batches(count, start=None, **changes):
    arguments = {"total_batch_size": 4, "seed": 3, "aspect_ratio_grouping": False} | changes
    loader = build_train_loader(records(), mapper, **arguments)
    if start is not None:
        loader.set_position(start)
    return list(itertools.islice(loader, count))


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(comm, "get_rank", lambda *_: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda *_: world_size)


def test_epochs_are_permutations():
    stream = [sample[0] for batch in batches(23) for sample in batch]  # 4 epochs
    epochs = [stream[i : i + 23] for i in range(0, 92, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_from_any_position_and_with_workers(num_workers, grouping):
    reference = batches(30, aspect_ratio_grouping=grouping)
    assert all(len(batch) == 4 for batch in reference)
    for start in (None, 0, 7, 19):
        resumed = batches(30 - (start or 0), start, num_workers=num_workers, aspect_ratio_grouping=grouping)
        assert resumed == reference[start or 0 :]


def test_samples_are_augmented_anew_every_time_and_by_seed():
    draws = [sample[1:] for batch in batches(23) for sample in batch]
    assert len(set(draws)) == len(draws)
    assert all(len(set(column)) == len(draws) for column in zip(*draws, strict=True))
    assert batches(3, seed=4) != batches(3, seed=3) == batches(3, seed=3)


def test_loading_leaves_the_global_generators_alone():
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]  # noqa: NPY002
    for num_workers in (0, 1):
        batches(5, num_workers=num_workers)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()


def test_set_position_does_not_load_what_it_skips():
    loaded = []
    loader = build_train_loader(records(), lambda r: loaded.append(r["id"]) or r["id"], 4, seed=3)
    loader.set_position(10)
    next(iter(loader))
    assert len(loaded) == 4


def test_ranks_partition_the_stream(monkeypatch):
    one = [sample for batch in batches(12) for sample in batch]
    shares = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        share = batches(12)
        assert all(len(batch) == 2 for batch in share)
        shares.append([sample for batch in share for sample in batch])
        assert batches(4, start=8) == share[8:]
    assert shares[0] == one[0::2]
    assert shares[1] == one[1::2]


def test_aspect_ratio_groups():
    def kinds(grouping):
        wide = [
            [SIZES[s[0] % 4][0] > SIZES[s[0] % 4][1] for s in b] for b in batches(60, aspect_ratio_grouping=grouping)
        ]
        return {len(set(batch)) for batch in wide}, {batch[0] for batch in wide}

    assert kinds(grouping=True) == ({1}, {True, False})
    assert 2 in kinds(grouping=False)[0]


def test_repeat_factor_sampling_repeats_images_of_rare_categories():
    # Category 1 is in 1 of 23 images; with a threshold of 4/23 its images are repeated sqrt(4) times.
    stream = [sample[0] for batch in batches(120, repeat_threshold=4 / 23 + 1e-6) for sample in batch]
    counts = np.bincount(stream, minlength=23)
    assert counts[0] / counts[1:].mean() == pytest.approx(2, rel=0.1)
    resumed = batches(20, start=100, repeat_threshold=4 / 23 + 1e-6)
    assert [sample[0] for batch in resumed for sample in batch] == stream[400:]


def test_batch_size_must_suit_the_processes(monkeypatch):
    as_rank(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match="total_batch_size 4 must be a positive multiple of 3"):
        batches(1)


def test_without_a_seed_the_order_is_random():
    assert batches(5, seed=None) != batches(5, seed=None)
    assert batches(5, seed=-1) != batches(5, seed=-1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_test_loader_sees_every_image_once_over_all_ranks(monkeypatch, num_workers):
    seen = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        loader = build_test_loader(records(), mapper, batch_size=3, num_workers=num_workers)
        assert len(loader) == 4
        seen += [sample[0] for batch in loader for sample in batch]
    assert seen == list(range(23))
