"""The training loop and its hooks."""

import logging
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from detrx.d2.embedded import comm
from detrx.d2.embedded.events import EventStorage, get_event_storage

__all__ = ["HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something that happens around the steps of a trainer. Override what is needed.

    A hook with state also has ``state_dict`` and ``load_state_dict``.
    """

    trainer: "TrainerBase"  # weak reference, set when the hook is registered

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_step(self) -> None:
        pass

    def after_backward(self) -> None:
        pass

    def after_step(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}


class TrainerBase:
    """A loop over :meth:`run_step`, with hooks.

    Attributes:
        iter: the current iteration; ``max_iter`` after a completed training.
        start_iter, max_iter: first iteration, and the one after the last.
        storage: the :class:`EventStorage` of the training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, which run in this order; None is skipped."""
        hooks = [hook for hook in hooks if hook is not None]
        for hook in hooks:
            assert isinstance(hook, HookBase)
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def run_step(self) -> None:
        raise NotImplementedError

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def state_dict(self) -> dict[str, Any]:
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("Cannot find the hook '%s', its state_dict is ignored.", name)
            else:
                hook.load_state_dict(state)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one data source.

    Args:
        model: maps a batch to a dict of scalar losses, or to one loss.
        data_loader: iterable of batches.
        optimizer: its ``step`` follows every backward pass.
        gather_metric_period: iterations between two collections of the losses from all ranks.
        zero_grad_before_forward: clear gradients before the forward instead of before the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
    ):
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._data_loader_iter_obj = None

    @property
    def _data_loader_iter(self):
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def run_step(self) -> None:
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            loss_dict = {"total_loss": loss_dict}
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self.after_backward()
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, self.iter)
        self.optimizer.step()

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Put the mean of every loss over the ranks, their sum as ``{prefix}total_loss`` and the longest data time.

        Raises:
            FloatingPointError: the sum is infinite or NaN.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        losses = {name: value.detach().cpu().item() for name, value in loss_dict.items()}
        gathered = comm.gather((losses, data_time))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered), cur_iter=cur_iter)
        losses = {name: np.mean([rank_losses[name] for rank_losses, _ in gathered]) for name in losses}
        total = sum(losses.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {losses}",
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(losses) > 1:
            storage.put_scalars(cur_iter=cur_iter, **losses)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
