"""Event storage, writers, logging and seeding."""

import json
import logging
import random

import numpy as np
import pytest
import torch

from detrx.d2.utils import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    seed_all_rng,
    setup_logger,
)


def fill(storage, iterations=30):
    """The loss is 100 in iteration 25, which medians do not show, and its iteration elsewhere."""
    for iteration in range(iterations):
        storage.iter = iteration
        storage.put_scalar("total_loss", 100 if iteration == 25 else iteration)
        storage.put_scalars(lr=0.1 * iteration, smoothing_hint=False)
        storage.put_scalars(time=0.5, data_time=0.25)


def test_only_the_innermost_storage_is_current():
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with EventStorage() as outer, EventStorage(7) as inner:
        assert get_event_storage() is inner is not outer
        assert inner.iter == 7


def test_latest_values_and_medians():
    with EventStorage() as storage:
        fill(storage)
        assert storage.latest()["total_loss"] == (29.0, 29)
        smoothed = storage.latest_with_smoothing_hint(20)
        assert smoothed["total_loss"] == (np.median([*range(10, 25), *range(26, 30), 100]), 29)
        assert smoothed["lr"] == (pytest.approx(2.9), 29)
        assert storage.history("total_loss").latest() == 29
        storage.iter = 40
        storage.put_scalar("rare", 1)
        assert storage.count_samples("rare", 20) == 1
        with pytest.raises(KeyError):
            storage.history("nothing")
        with pytest.raises(AssertionError, match="smoothing_hint"):
            storage.put_scalar("lr", 1, smoothing_hint=True)


def test_json_lines_hold_what_is_new(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path))
        fill(storage, 10)
        writer.write()
        writer.write()
        storage.iter = 12
        storage.put_scalar("bbox/AP", 40, smoothing_hint=False)
        writer.write()
        writer.close()
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first == {"data_time": 0.25, "iteration": 9, "lr": 0.9, "time": 0.5, "total_loss": 4.5}
    assert second == {"bbox/AP": 40, "iteration": 12}


def test_tensorboard_has_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        fill(storage, 10)
        writer.write()
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("total_loss")] == [(9, 4.5)]


@pytest.fixture
def messages():
    """Messages of all loggers that the providers may use."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("detectron2", "detrx", __name__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield records
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_console_line(messages):
    with EventStorage() as storage:
        fill(storage, 10)
        printer = CommonMetricPrinter(max_iter=110)
        printer.write()
        storage.iter = 110
        printer.write()  # nothing: the training is over
    (line,) = messages
    for part in ("eta: 0:00:50", "iter: 9", "total_loss: 4.5", "time: 0.5000", "data_time: 0.2500", "lr: 0.9"):
        assert part in line


def test_each_rank_has_its_file(tmp_path, capsys):
    for rank in (0, 1):
        logger = setup_logger(str(tmp_path), rank, name=f"some.rank{rank}")
        logger.getChild("part").info("hello from %d", rank)
    assert "hello from 0" in (tmp_path / "log.txt").read_text()
    assert "hello from 1" in (tmp_path / "log.txt.rank1").read_text()
    console = capsys.readouterr().out
    assert "hello from 0" in console
    assert "hello from 1" not in console
    assert setup_logger(str(tmp_path), 0, name="some.rank0") is logging.getLogger("some.rank0")
    logging.getLogger("some.rank0").info("once")
    assert (tmp_path / "log.txt").read_text().count("once") == 1


def test_seed_sets_all_generators():
    draws = []
    for _ in range(2):
        seed_all_rng(3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert draws[0] == draws[1]
