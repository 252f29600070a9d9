"""Hooks of the trainer."""

import datetime
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from detrx.checkpoint.checkpointer import AtomicCheckpointer
from detrx.d2.engine import HookBase, hooks
from detrx.d2.utils import comm
from detrx.engine.rng import preserved_rng
from detrx.errors import InvalidInputError

__all__ = ["BestCheckpoint", "CheckpointHook", "EvaluationHook", "IterationTimer", "StopHook"]

logger = logging.getLogger(__name__)


class IterationTimer(HookBase):
    """Put the duration of each iteration, without the hooks after it, into the storage as "time"; log a summary.

    Register it first. It differs from the provider's hook of this name in one point: as the host runs ahead of a GPU,
    its clock is right only when it waits. So all iterations whose losses are fetched together get their mean duration.

    Args:
        warmup_iter: iterations at the start that are not counted.
    """

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter = warmup_iter
        self._pending: list[int] = []
        self._pending_seconds = 0.0
        self._counted, self._seconds = 0, 0.0
        self._train_start = self._step_start = time.perf_counter()

    def before_train(self) -> None:
        self._train_start = time.perf_counter()

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if iteration - self.trainer.start_iter + 1 < self._warmup_iter:
            self._train_start = time.perf_counter()
            return
        self._pending.append(iteration)
        self._pending_seconds += time.perf_counter() - self._step_start
        if self.trainer.num_pending:
            return
        for each in self._pending:
            self.trainer.storage.put_scalar("time", self._pending_seconds / len(self._pending), cur_iter=each)
        self._counted += len(self._pending)
        self._seconds += self._pending_seconds
        self._pending, self._pending_seconds = [], 0.0

    def after_train(self) -> None:
        total = time.perf_counter() - self._train_start
        if self._counted:
            duration, mean = datetime.timedelta(seconds=int(self._seconds)), self._seconds / self._counted
            logger.info(f"Overall training speed: {self._counted} iterations in {duration} ({mean:.4f} s / it)")
        whole, others = (datetime.timedelta(seconds=int(seconds)) for seconds in (total, total - self._seconds))
        logger.info(f"Total training time: {whole} ({others} on hooks)")


class CheckpointHook(HookBase):
    """Save ``model_{iteration}`` every ``period`` iterations and on a stop signal, ``model_final`` at the end.

    Register it in every process. Hooks registered after it run when the checkpoint of the iteration is already written,
    so a resumed training runs them again for that iteration.

    Args:
        checkpointer: of model and trainer.
        period: in iterations.
        max_to_keep: how many of the newest ``model_{iteration}`` to keep; None: all.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, period: int, max_to_keep: int | None = None):
        if period < 1:
            raise InvalidInputError(f"train.checkpointer.period must be 1 or more iterations, got {period}")
        if max_to_keep is not None and max_to_keep < 1:
            raise InvalidInputError(f"train.checkpointer.max_to_keep must be 1 or more, or None, got {max_to_keep}")
        self._checkpointer = checkpointer
        self._period = int(period)
        self._max_to_keep = max_to_keep
        self._saved: list[str] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
        elif done % self._period == 0 or self.trainer.stop_signal:
            self.save()

    def save(self) -> None:
        """Save a checkpoint of the current iteration, unless there is one."""
        name = f"model_{self.trainer.iter:07d}"
        if name in self._saved:
            return
        self._saved.append(name)
        outdated = self._saved[: -self._max_to_keep] if self._max_to_keep else []
        self._saved = self._saved[len(outdated) :]
        self._checkpointer.save(name, iteration=self.trainer.iter)
        if comm.is_main_process():
            for old in outdated:
                path = os.path.join(self._checkpointer.save_dir, f"{old}.pth")
                if os.path.exists(path):
                    os.remove(path)

    def state_dict(self) -> dict[str, Any]:
        return {"saved": list(self._saved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = list(state_dict["saved"])


class EvaluationHook(hooks.EvalHook):
    """The provider's `EvalHook`, made so that evaluation does not affect training.

    The losses of the iterations before are checked first. The random number generators are restored afterwards. In
    distributed training all processes evaluate with the buffers of rank 0, which are those of the checkpoint. In
    training with one process, SIGINT and SIGTERM abort the evaluation; it runs when the training is resumed.

    Args:
        eval_period: in iterations; 0: only after a completed training.
        model: the model to evaluate, not wrapped by DistributedDataParallel.
        function: evaluates it and returns a nested dict of floats.
    """

    def __init__(self, eval_period: int, model: nn.Module, function: Callable[[], dict[str, Any]]):
        super().__init__(eval_period, self._evaluate_alone)
        self._model = model
        self._evaluation = function

    def after_train(self) -> None:
        if self.trainer.completed:
            super().after_train()

    def _evaluate_alone(self) -> dict[str, Any] | None:
        self.trainer.fetch_scalars()
        if comm.get_world_size() > 1:
            for buffer in self._model.buffers():
                dist.broadcast(buffer, src=0)
        training = self._model.training
        guard = self._model.register_forward_pre_hook(self._abort_if_stopped)
        try:
            with preserved_rng():
                return self._evaluation()
        except Exception:  # _Aborted, or an error of the loader, whose workers got the signal as well
            if not self._is_stopped():
                raise
            logger.info("The evaluation is aborted.")
            return None
        finally:
            guard.remove()
            self._model.train(training)

    def _abort_if_stopped(self, *_: Any) -> None:
        if self._is_stopped():
            raise _Aborted

    def _is_stopped(self) -> bool:
        return self.trainer.stop_signal != 0 and comm.get_world_size() == 1


class _Aborted(Exception):
    pass


class BestCheckpoint(hooks.BestCheckpointer):
    """The provider's `BestCheckpointer`, whose best value survives a resume. Register it in every process.

    After a resume with another metric the search begins anew.
    """

    def after_step(self) -> None:
        if comm.is_main_process() and not self.trainer.stop_signal:
            super().after_step()

    def after_train(self) -> None:
        if comm.is_main_process() and self.trainer.completed and not self.trainer.stop_signal:
            super().after_train()

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self._val_metric, "best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("metric", self._val_metric) != self._val_metric:
            logger.warning("The best %s does not count, now that it is %s", state_dict["metric"], self._val_metric)
            return
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class StopHook(HookBase):
    """Exit after SIGINT or SIGTERM, with the shell's exit code. Register it last, in every process."""

    def __init__(self, checkpoint: CheckpointHook):
        self._checkpoint = checkpoint

    def after_step(self) -> None:
        """Raise SystemExit in all processes, after rank 0 has written the checkpoint."""
        if not self.trainer.stop_signal:
            return
        if self.trainer.iter + 1 < self.trainer.max_iter:
            self._checkpoint.save()
        comm.synchronize()
        raise SystemExit(128 + self.trainer.stop_signal)
