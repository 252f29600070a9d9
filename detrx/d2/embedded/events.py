"""Scalars of a training run: where they are collected, and who writes them out."""

import datetime
import json
import logging
import os
from collections import defaultdict
from itertools import takewhile

import torch
from fvcore.common.history_buffer import HistoryBuffer

from detrx.d2.embedded.file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
]

_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The innermost :class:`EventStorage` in use; an AssertionError outside of any."""
    assert _storages, "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    return _storages[-1]


class EventStorage:
    """Histories of named scalars, each value with the iteration it belongs to.

    Attributes:
        iter: the current iteration, the same as the trainer's.
    """

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self.iter = start_iter

    def put_scalar(self, name: str, value, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a value; writers show a running median of scalars that have the smoothing hint."""
        cur_iter = self.iter if cur_iter is None else cur_iter
        value = float(value)
        self._history.setdefault(name, HistoryBuffer()).update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)
        known_hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known_hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs) -> None:
        """:meth:`put_scalar` for every keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        """All values of one scalar; KeyError if it was never put."""
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Newest (value, iteration) of every scalar."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like :meth:`latest`, with the median over the last ``window_size`` iterations where smoothing is hinted."""
        return {
            name: (self._history[name].median(self.count_samples(name, window_size)), it)
            if self._smoothing_hints[name]
            else (value, it)
            for name, (value, it) in self._latest_scalars.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Number of values of ``name`` in the ``window_size`` iterations up to its newest one."""
        values = self._history[name].values()
        first = values[-1][1] - window_size
        return sum(1 for _ in takewhile(lambda entry: entry[1] > first, reversed(values)))

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *exc_info) -> None:
        assert _storages[-1] is self
        _storages.pop()


class EventWriter:
    """Takes scalars from the current :class:`EventStorage` when :meth:`write` is called."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class _NewScalarsWriter(EventWriter):
    def __init__(self, window_size: int):
        self._window_size = window_size
        self._last_write = -1

    def _new_scalars(self) -> list[tuple[str, float, int]]:
        """(name, value or median, iteration) of the scalars of later iterations than the last write."""
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        new = [(name, value, it) for name, (value, it) in latest.items() if it > self._last_write]
        self._last_write = max((it for *_, it in new), default=self._last_write)
        return new


class JSONWriter(_NewScalarsWriter):
    """Append the scalars that are new since the last write to a file, one JSON object per iteration and line."""

    def __init__(self, json_file: str, window_size: int = 20):
        super().__init__(window_size)
        self._file_handle = PathManager.open(json_file, "a", encoding="utf-8")

    def write(self) -> None:
        lines: dict[int, dict] = defaultdict(dict)
        for name, value, it in self._new_scalars():
            lines[it][name] = value
        for it, scalars in lines.items():
            self._file_handle.write(json.dumps({**scalars, "iteration": it}, sort_keys=True) + "\n")
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(_NewScalarsWriter):
    """Write all scalars to a TensorBoard event file.

    Args:
        log_dir: folder of the event file.
        window_size: see :meth:`EventStorage.latest_with_smoothing_hint`.
        kwargs: further arguments of ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(window_size)
        self._writer = SummaryWriter(log_dir, **kwargs)

    def write(self) -> None:
        for name, value, it in self._new_scalars():
            self._writer.add_scalar(name, value, it)

    def close(self) -> None:
        self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Log one line: ETA, iteration, losses (medians), times, learning rate and peak GPU memory.

    Args:
        max_iter: length of the training, for the ETA; None: no ETA.
        window_size: iterations over which losses are medians.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger: logging.Logger | logging.LoggerAdapter = logging.getLogger("detrx.d2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size

    def _eta(self, storage: EventStorage) -> str:
        if self._max_iter is None or "time" not in storage.histories():
            return ""
        seconds = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return f"eta: {datetime.timedelta(seconds=int(seconds))}  "

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # after the training: nothing about its progress is left to tell
            return
        histories = storage.histories()

        def medians(part_of_name: str) -> str:
            return "  ".join(
                f"{name}: {values.median(storage.count_samples(name, self._window_size)):.4g}"
                for name, values in histories.items()
                if part_of_name in name
            )

        times = ""
        if "time" in histories:
            values = histories["time"]
            times += f"time: {values.global_avg():.4f}  last_time: {values.latest():.4f}  "
        if "data_time" in histories:
            values = histories["data_time"]
            average = values.avg(storage.count_samples("data_time", self._window_size))
            times += f"data_time: {average:.4f}  last_data_time: {values.latest():.4f}  "
        lr = f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""
        eta = self._eta(storage)
        self.logger.info(
            f" {eta}iter: {storage.iter}  {medians('loss')}  {medians('[metric]')}  {times} lr: {lr}  {memory}"
        )
