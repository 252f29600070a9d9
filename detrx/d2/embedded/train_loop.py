"""The training loop and its hooks."""

import logging
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from detrx.d2.embedded.events import EventStorage

__all__ = ["HookBase", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something that happens around the steps of a trainer. Override what is needed."""

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class TrainerBase:
    """A loop over :meth:`run_step`, with hooks.

    Attributes:
        iter: the current iteration; ``max_iter`` after a completed training.
        start_iter, max_iter: first iteration, and the one after the last.
        storage: the :class:`EventStorage` of the training.
        optimizer: of a trainer that has one; :class:`LRScheduler` without an optimizer of its own needs it.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, which run in this order; None is skipped."""
        added = [hook for hook in hooks if hook is not None]
        for hook in added:
            assert isinstance(hook, HookBase)
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(added)

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
