"""Hooks of a trainer: schedule, best checkpoint, evaluation, writers."""

import logging
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import ParamScheduler

from detrx.d2.embedded import comm
from detrx.d2.embedded.events import EventWriter
from detrx.d2.embedded.solver import LRMultiplier
from detrx.d2.embedded.train_loop import HookBase
from detrx.errors import InvalidInputError

__all__ = [
    "BestCheckpointer",
    "EvalHook",
    "HookBase",
    "LRScheduler",
    "PeriodicWriter",
]

logger = logging.getLogger(__name__)


class PeriodicWriter(HookBase):
    """Let writers write every ``period`` iterations, after the last one, and when the training ends."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()


class EvalHook(HookBase):
    """Evaluate every ``eval_period`` iterations and after a completed training; put the results as scalars.

    Args:
        eval_period: 0: only after the training.
        eval_function: returns a nested dict of floats, or None; every rank calls it.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Mapping[str, Any] | None]):
        self._period = eval_period
        self._function = eval_function

    def _evaluate(self) -> None:
        results = self._function()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            for name, value in _flatten(results).items():
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        comm.synchronize()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate()
        del self._function  # it may hold the trainer: free it


def _flatten(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"bbox": {"AP": 1}}`` to ``{"bbox/AP": 1.0}``."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}/"))
            continue
        try:
            flat[prefix + name] = float(value)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"[EvalHook] eval_function should return a nested dict of float. Got '{prefix}{name}: {value}' instead."
            ) from error
    return flat


class BestCheckpointer(HookBase):
    """Save a checkpoint when a metric is better than ever. Register it after the :class:`EvalHook` that puts it.

    Args:
        eval_period: that of the :class:`EvalHook`.
        checkpointer: saves the checkpoint.
        val_metric: name of the scalar, such as "bbox/AP".
        mode: "max" or "min".
        file_prefix: name of the checkpoint.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        assert mode in ("max", "min"), f'Mode "{mode}" to `BestCheckpointer` is unknown. It should be "max" or "min".'
        self._compare = operator.gt if mode == "max" else operator.lt
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _best_checking(self) -> None:
        if self._val_metric not in self.trainer.storage.latest():
            logger.warning(f"Metric {self._val_metric} has not been computed: no checkpoint is saved for it.")
            return
        value, iteration = self.trainer.storage.latest()[self._val_metric]
        if not math.isfinite(value) or (self.best_metric is not None and not self._compare(value, self.best_metric)):
            logger.info(f"{self._val_metric} {value:.5f} is not better than {self.best_metric} @ {self.best_iter}.")
            return
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info(f"Saved the best model so far: {self._val_metric} {value:.5f} @ iteration {iteration}.")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._best_checking()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


class LRScheduler(HookBase):
    """Multiply the initial learning rates by a schedule, step by step, and put the learning rate as "lr".

    It has no state of its own: it continues from the iteration of the trainer and the state of the optimizer.

    Args:
        optimizer: default: the trainer's.
        scheduler: over the whole training, from 0 to 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None, *, scheduler: ParamScheduler):
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        optimizer = self._optimizer or self.trainer.optimizer
        self._multiplier = LRMultiplier(
            optimizer, self._scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
        )
        self._best_param_group_id = self.get_best_param_group_id(optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose learning rate to log: the one of most parameters, or of the commonest learning rate."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common()[0][0])

    def after_step(self) -> None:
        lr = self._multiplier.optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self._multiplier.step()
