"""The trainer of our training script."""

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detrx.d2.engine import TrainerBase
from detrx.d2.utils import EventStorage, comm
from detrx.engine.ema import ModelEMA
from detrx.engine.hooks import CheckpointHook
from detrx.engine.rng import get_rng_state, set_rng_state
from detrx.engine.signals import StopSignals

__all__ = ["NonFiniteError", "Trainer"]

logger = logging.getLogger(__name__)

_SMOOTHING_WINDOW = 20  # iterations, of the writers
_NOT_KEPT = ("time", "eta_seconds")  # scalars that say nothing about a training that goes on elsewhere


class NonFiniteError(FloatingPointError):
    """A loss or the gradient became infinite or NaN."""


class Trainer(TrainerBase):
    """A training with mixed precision, accumulation, clipping and averaging, which can be stopped and resumed.

    After a resume the losses are exactly those of a training that was never interrupted: its state has the generators
    of every process, the values that the writers smooth over, and the data loader continues at the right batch (if it
    has ``set_position``).

    Args:
        model: maps a batch to a dict of scalar losses; plain or wrapped by DistributedDataParallel.
        data_loader: infinite iterable of batches (lists of dicts).
        optimizer: its parameters are those of ``model``.
        amp_dtype: type of the mixed-precision forward pass, or None for full precision. float16 has a loss scale.
        max_norm: norm to clip gradients to, or None. The norm before clipping is logged as "grad_norm".
        norm_type: of the norm.
        accumulate: batches per optimizer step; their gradients are averaged.
        ema: follows the model after every step.
        seed: of the run; a resume under another seed is refused, because its data would be other data.

    Attributes:
        completed: whether all iterations are done.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        accumulate: int = 1,
        ema: ModelEMA | None = None,
        seed: int | None = None,
    ):
        if accumulate < 1:
            raise ValueError(f"train.accumulate must be 1 or more batches per step, got {accumulate}")
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"train.clip_grad.max_norm must be positive, got {max_norm}")
        super().__init__()
        self.model = model.train()
        self.optimizer = optimizer
        self.data_loader = data_loader
        self._batches: Iterator[list[dict]] | None = None
        self._device_type = next(model.parameters()).device.type
        self._amp_dtype = amp_dtype
        self._scaler = torch.amp.GradScaler(self._device_type, enabled=amp_dtype == torch.float16)
        self._max_norm = max_norm
        self._norm_type = norm_type
        self._accumulate = accumulate
        self._ema = ema
        self._seed = seed
        self._signals = StopSignals()
        self._agreed_signal = 0
        self._loaded: dict[str, Any] | None = None
        self.completed = False

    @property
    def stop_signal(self) -> int:
        """SIGINT or SIGTERM if the training is to stop, else 0. The same in all processes."""
        return self._signals.received if comm.get_world_size() == 1 else self._agreed_signal

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``.

        Raises:
            NonFiniteError: a loss or the gradient is infinite or NaN.
            SystemExit: SIGINT or SIGTERM has stopped the training; a checkpoint is saved.
        """
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage, self._signals:
            try:
                self.before_train()
                if self._loaded is not None:
                    self._continue()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max(start_iter, max_iter)
                self.completed = True
            finally:
                self._batches = None  # ends its workers
                self.after_train()
            if self._signals.received:  # during the last evaluation
                raise SystemExit(128 + self._signals.received)

    def _continue(self) -> None:
        """Restore what is part of a running training, and do what was left to do after the checkpoint was saved."""
        state, self._loaded = self._loaded, None
        for name, (smoothing_hint, values) in state["scalars"].items():
            for value, iteration in values:
                self.storage.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=iteration)
        if self.start_iter < self.max_iter:
            if hasattr(self.data_loader, "set_position"):
                self.data_loader.set_position(self.start_iter * self._accumulate)
            else:
                logger.warning("The data loader has no set_position: it begins with its first batch again")
            self._batches = iter(self.data_loader)  # before the generators are restored: DataLoader may draw from them

        self.iter = self.storage.iter = self.start_iter - 1
        index = next((i for i, hook in enumerate(self._hooks) if isinstance(hook, CheckpointHook)), len(self._hooks))
        for hook in self._hooks[index + 1 :]:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

        rank, states = comm.get_rank(), state["rng"]
        if rank < len(states):
            set_rng_state(states[rank])
        else:
            logger.warning("The checkpoint has no generator state for rank %d", rank)

    def run_step(self) -> None:
        """One optimizer step."""
        assert self.model.training, "the model is in evaluation mode"
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batches = [next(self._batches) for _ in range(self._accumulate)]
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, batch in enumerate(batches):
            last = i == self._accumulate - 1
            with self._without_sync() if not last else contextlib.nullcontext():
                with torch.autocast(self._device_type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
                    loss_dict = self.model(batch)
                self._scaler.scale(sum(loss_dict.values()) / self._accumulate).backward()
            losses.append({name: value.detach() for name, value in loss_dict.items()})
        self.after_backward()
        self._log_losses(losses, batches, data_time)
        self._optimizer_step()

    def _without_sync(self) -> contextlib.AbstractContextManager:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _log_losses(self, losses: list[dict[str, torch.Tensor]], batches: list[list[dict]], data_time: float) -> None:
        """Put the means over batches and processes, and agree on whether to stop: one exchange for both."""
        names = list(losses[0])
        values = torch.stack([torch.stack([batch[name].float() for name in names]) for batch in losses]).cpu()
        wrong = [
            image.get("image_id", image.get("file_name"))
            for batch, finite in zip(batches, values.isfinite().all(1).tolist(), strict=True)
            if not finite
            for image in batch
        ]
        mean = dict(zip(names, values.double().mean(0).tolist(), strict=True))
        gathered = comm.all_gather((mean, data_time, wrong, self._signals.received))

        self._agreed_signal = max(signal for *_, signal in gathered)
        self.storage.put_scalar("rank_data_time", data_time)
        self.storage.put_scalar("data_time", max(seconds for _, seconds, *_ in gathered))
        mean = {name: sum(rank[0][name] for rank in gathered) / len(gathered) for name in names}
        total = sum(mean.values())
        if not math.isfinite(total):
            bad = ", ".join(f"{name}={value}" for name, value in mean.items() if not math.isfinite(value))
            images = [image for rank in gathered for image in rank[2]]
            raise NonFiniteError(
                f"loss is not finite in iteration {self.iter}: {bad or f'total_loss={total}'}; image ids of the batch: "
                f"{images}. Lower the learning rate, clip gradients, or check the annotations of these images"
            )
        self.storage.put_scalar("total_loss", total)
        if len(names) > 1:
            self.storage.put_scalars(**mean)

    def _optimizer_step(self) -> None:
        if self._max_norm is not None:
            self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self._max_norm, self._norm_type).item()
            if math.isfinite(norm):
                self.storage.put_scalar("grad_norm", norm)
            elif not self._scaler.is_enabled():  # otherwise the scaler skips the step and lowers its scale
                raise NonFiniteError(f"the norm of the gradient is {norm} in iteration {self.iter}, with finite losses")
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(_unwrapped(self.model))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and containers. Every process must call it: it has the generators of all."""
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        state["grad_scaler"] = self._scaler.state_dict()
        state["rng"] = comm.all_gather(get_rng_state())
        state["seed"] = self._seed
        hints = self.storage.smoothing_hints()
        state["scalars"] = {
            name: (hints[name], [(float(value), int(iteration)) for value, iteration in history.values()[-keep:]])
            for name, history in self.storage.histories().items()
            if name not in _NOT_KEPT
            for keep in [self.storage.count_samples(name, _SMOOTHING_WINDOW)]
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes effect in :meth:`train`. Raises KeyError or ValueError if it is not the state of such a training."""
        for key in ("iteration", "optimizer", "rng", "scalars", "seed"):
            if key not in state_dict:
                raise KeyError(f"no {key!r}: another script has saved it")
        if state_dict["seed"] != self._seed:
            raise ValueError(f"it was trained with seed {state_dict['seed']}, not {self._seed}")
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self._scaler.is_enabled() and state_dict["grad_scaler"]:
            self._scaler.load_state_dict(state_dict["grad_scaler"])
        self._loaded = state_dict


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
