"""Running a model over a dataset, and what is done with its outputs."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from detrx.d2.embedded import comm

logger = logging.getLogger(__name__)


class DatasetEvaluator:
    """Takes in the outputs of a model batch by batch and computes results in the end."""

    def reset(self) -> None:
        """Begin a new evaluation."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in what the model made of ``inputs``."""

    def evaluate(self) -> dict[str, Any] | None:
        """Results by task, such as ``{"bbox": {"AP": 42.0}}``; called on all ranks, needed from rank 0 only."""


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def inference_on_dataset(model: Any, data_loader: DataLoader | Sequence, evaluator: DatasetEvaluator) -> dict[str, Any]:
    """Run ``model`` over ``data_loader`` without gradients and log its speed, for which a GPU is waited for.

    Args:
        model: a module, put into eval mode meanwhile, or any other callable.

    Returns:
        What the evaluator returns, an empty dict for None.
    """
    evaluator.reset()
    total = len(data_loader)
    logger.info("Start inference on %d batches", total)

    clock = _Clock(total)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        for inputs in data_loader:
            clock.lap("data")
            outputs = model(inputs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            clock.lap("compute")
            evaluator.process(inputs, outputs)
            clock.lap("eval")
            clock.end_of_batch()
    clock.log_total()
    results = evaluator.evaluate()
    return {} if results is None else results


class _Clock:
    """Seconds per part of the work. The first few batches warm the machine up and do not count."""

    def __init__(self, total: int):
        self._total = total
        self._warmup = max(0, min(5, total - 1))
        self._done = 0
        self._last_line = self._start = self._last = time.perf_counter()
        self._seconds = dict.fromkeys(("data", "compute", "eval"), 0.0)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now

    def end_of_batch(self) -> None:
        self._done += 1
        if self._done == self._warmup:
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._start = self._last
        elif self._last - self._last_line >= 5.0:
            self._last_line = self._last
            counted = self._done - self._warmup if self._done > self._warmup else self._done
            per_batch = (self._last - self._start) / counted
            data, compute, evaluation = (seconds / counted for seconds in self._seconds.values())
            logger.info(
                f"Inference done {self._done}/{self._total}. Dataloading: {data:.4f} s/iter. "
                f"Inference: {compute:.4f} s/iter. Eval: {evaluation:.4f} s/iter. Total: {per_batch:.4f} s/iter. "
                f"ETA={datetime.timedelta(seconds=int(per_batch * (self._total - self._done)))}"
            )

    def log_total(self) -> None:
        counted = max(1, self._total - self._warmup)
        parts = {"inference time": self._last - self._start, "inference pure compute time": self._seconds["compute"]}
        for name, seconds in parts.items():
            logger.info(
                f"Total {name}: {datetime.timedelta(seconds=seconds)} "
                f"({seconds / counted:.6f} s / iter per device, on {comm.get_world_size()} devices)"
            )


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main results in lines that can be pasted into a spreadsheet; without those of single categories."""
    for task, metrics in results.items():
        if isinstance(metrics, Mapping):
            main = {name: value for name, value in metrics.items() if "-" not in name}
            logger.info("copypaste: Task: %s", task)
            logger.info("copypaste: %s", ",".join(main))
            logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))
        else:
            logger.info("copypaste: %s=%s", task, metrics)
