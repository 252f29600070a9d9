"""The trainer behind `tools/lazyconfig_train_net.py`."""

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detrx.d2.engine import TrainerBase
from detrx.d2.utils import EventStorage, comm
from detrx.data.prefetch import Prefetcher
from detrx.engine.ema import ModelEMA
from detrx.engine.hooks import CheckpointHook
from detrx.engine.optimizer import load_optimizer_state, step_if_finite
from detrx.engine.rng import get_rng_state, set_rng_state
from detrx.engine.signals import StopSignals
from detrx.engine.step_log import StepLog
from detrx.errors import InvalidInputError, NonFiniteError, NonFinitePredictionError, UnknownNameError

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

_SMOOTHING_WINDOW = 20  # iterations, of the writers
_NOT_KEPT = ("time", "eta_seconds")  # scalars that depend on the machine, which may be another one after a resume


class Trainer(TrainerBase):
    """Trains with mixed precision, gradient accumulation, clipping and EMA, and can be stopped and resumed.

    After a resume the losses are exactly those of an uninterrupted training. The state of the trainer includes the
    random number generators of all processes and the values that the writers smooth over, and the data loader continues
    at the right batch, if it has ``set_position``. Such a loader must not draw from the global generators.

    The host does not wait for the device after each step. Losses and gradient norms are fetched together every
    ``log_period`` iterations, before a checkpoint or an evaluation, and after the last iteration. A loss that is not
    finite therefore ends the training up to ``log_period - 1`` iterations later, but it cannot get into a checkpoint,
    and fused optimizers skip the step on the device. Processes also agree on a signal to stop when they fetch.

    Args:
        model: maps a batch to a dict of scalar losses; plain or wrapped by DistributedDataParallel.
        data_loader: infinite iterable of batches (lists of dicts).
        optimizer: of the parameters of ``model``.
        amp_dtype: type of the mixed-precision forward pass, or None for full precision. With float16 the loss is
            scaled.
        max_norm: largest norm of the gradient, which is clipped; None: no clipping. The norm before clipping is logged
            as "grad_norm".
        norm_type: p of the p-norm.
        accumulate: batches per optimizer step; their gradients are averaged.
        ema: updated after every step.
        seed: of the run. Resuming with another seed is an error, because the data would differ.
        log_period: number of iterations whose losses are fetched together. With one process on a CPU every iteration is
            fetched by itself.

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
        log_period: int = 1,
    ):
        if accumulate < 1:
            raise InvalidInputError(f"train.accumulate must be 1 or more batches per step, got {accumulate}")
        if max_norm is not None and max_norm <= 0:
            raise InvalidInputError(f"train.clip_grad.max_norm must be positive, got {max_norm}")
        if log_period < 1:
            raise InvalidInputError(f"train.log_period must be 1 or more iterations, got {log_period}")
        super().__init__()
        self.model = model.train()
        self.optimizer = optimizer
        self.data_loader = data_loader
        self._batches: Prefetcher | None = None
        self._device = next(model.parameters()).device
        self._amp_dtype = amp_dtype
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=amp_dtype == torch.float16)
        self._max_norm = max_norm
        self._norm_type = norm_type
        self._accumulate = accumulate
        self._ema = ema
        self._seed = seed
        self._log_period = 1 if self._device.type == "cpu" and comm.get_world_size() == 1 else log_period
        self._log = StepLog(overflow_is_normal=self._scaler.is_enabled())
        self._signals = StopSignals()
        self._agreed_signal = 0
        self._loaded: dict[str, Any] | None = None
        self._num_batches = 0  # that were trained
        self.completed = False

    @property
    def stop_signal(self) -> int:
        """SIGINT or SIGTERM if the training has to stop, else 0; the same in all processes."""
        return self._signals.received if comm.get_world_size() == 1 else self._agreed_signal

    @property
    def num_pending(self) -> int:
        """Number of iterations whose losses have not been fetched."""
        return len(self._log)

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
                if (state := self._loaded) is not None:
                    self._loaded = None
                    self._continue(state)
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max(start_iter, max_iter)
                self.completed = True
            except Exception as error:
                self._look_for_cause(error)
                raise
            finally:
                self._batches = None  # ends the workers of the loader
                self.after_train()
            if self._signals.received:  # during the last evaluation
                raise SystemExit(128 + self._signals.received)

    def _continue(self, state: dict[str, Any]) -> None:
        """Restore a loaded state, and run the hooks that come after the checkpoint was saved, for its iteration."""
        for name, (smoothing_hint, values) in state["scalars"].items():
            for value, iteration in values:
                self.storage.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=iteration)
        if self.start_iter < self.max_iter:
            if hasattr(self.data_loader, "set_position"):
                self.data_loader.set_position(self._num_batches)
            else:
                logger.warning("The data loader has no set_position: it starts again with its first batch")
            self._open_loader()  # before the generators are restored: DataLoader may draw from them

        self.iter = self.storage.iter = self.start_iter - 1
        index = next((i for i, hook in enumerate(self._hooks) if isinstance(hook, CheckpointHook)), len(self._hooks))
        for hook in self._hooks[index + 1 :]:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

        rank, states = comm.get_rank(), state["rng"]
        if len(states) != comm.get_world_size():
            logger.warning(
                "The checkpoint is of a training with %d processes, this one has %d: it continues with other random "
                "numbers",
                len(states),
                comm.get_world_size(),
            )
        if rank < len(states):
            set_rng_state(states[rank])

    def _open_loader(self) -> Prefetcher:
        if self._batches is None:
            self._batches = Prefetcher(self.data_loader, self._device)
        return self._batches

    def _look_for_cause(self, error: Exception) -> None:
        """Raise NonFiniteError if values that are not finite may be the cause of a failed step."""
        if isinstance(error, NonFiniteError) and not isinstance(error, NonFinitePredictionError):
            return
        try:
            if comm.get_world_size() == 1:
                self._log.fetch(self.storage)
            else:
                self._log.check()
        except RuntimeError:  # the device has failed
            return
        if isinstance(error, FloatingPointError):
            raise NonFiniteError(f"iteration {self.iter}: {error}") from error

    def run_step(self) -> None:
        """Take one optimizer step."""
        assert self.model.training, "the model is in evaluation mode"
        loader = self._open_loader()
        self.optimizer.zero_grad(set_to_none=True)
        batches, losses, data_time = [], [], 0.0
        names: list[str] = []
        self._num_batches += self._accumulate
        for index in range(self._accumulate):
            last = index == self._accumulate - 1
            batches.append(next(loader))
            data_time += loader.waited
            with self._without_sync() if not last else contextlib.nullcontext():
                with torch.autocast(self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
                    loss_dict = self.model(batches[-1])
                names = names or list(loss_dict)
                values = torch.stack([loss_dict[name].float() for name in names])
                self._scaler.scale(values.sum() / self._accumulate).backward()
            losses.append(values.detach())
            if not last:
                loader.prefetch()
        self.after_backward()
        self._optimizer_step(names, torch.stack(losses), batches, data_time)
        if self.iter + 1 < self.max_iter:
            loader.prefetch()

    def _without_sync(self) -> contextlib.AbstractContextManager:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _optimizer_step(self, names: list[str], losses: Tensor, batches: list[list[dict]], data_time: float) -> None:
        norm = None
        if self._max_norm is not None:
            self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self._max_norm, self._norm_type)
        self._log.add(self.iter, names, losses, norm, data_time, batches)
        done = self.iter + 1
        if done % self._log_period == 0 or done >= self.max_iter:
            self.fetch_scalars()
        if self._scaler.is_enabled():
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif self.num_pending == 0:  # the step is known to be finite
            self.optimizer.step()
        else:
            step_if_finite(self.optimizer, losses if norm is None else torch.cat([losses.flatten(), norm.reshape(1)]))
        if self._ema is not None:
            self._ema.update(_unwrapped(self.model))

    def fetch_scalars(self) -> None:
        """Wait for the device, check the iterations up to this one, and put their scalars into the storage.

        Every process must call it.

        Raises:
            NonFiniteError: a loss or the gradient of one of them is infinite or NaN.
        """
        if self.num_pending:
            self._agreed_signal = self._log.fetch(self.storage, self._signals.received)

    def state_dict(self) -> dict[str, Any]:
        """State as plain tensors, numbers and containers.

        Every process must call it, because it gathers the random number generators of all.

        Raises:
            NonFiniteError: as in :meth:`fetch_scalars`, so no checkpoint can contain the result of such a step.
        """
        self.fetch_scalars()
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        state["optimizer_class"] = type(self.optimizer).__qualname__
        state["parameter_names"] = self._parameter_names()
        state["num_batches"] = self._num_batches
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
        """Load a state; parts of it are restored only when :meth:`train` begins.

        Settings are those of this trainer and its optimizer, not those of the state. Those of the optimizer that differ
        are logged.

        Raises:
            KeyError: an entry is missing.
            ValueError: it is the state of a training with another seed, other parameters or another kind of optimizer.
        """
        for key in ("iteration", "optimizer", "rng", "scalars", "seed"):
            if key not in state_dict:
                raise UnknownNameError(f"no {key!r}: it was saved by another script")
        if state_dict["seed"] != self._seed:
            raise InvalidInputError(f"it was trained with seed {state_dict['seed']}, not {self._seed}")
        own, saved = type(self.optimizer).__qualname__, state_dict.get("optimizer_class")
        if saved not in (None, own):
            raise InvalidInputError(f"it was trained with the optimizer {saved}, not {own}")
        changes = load_optimizer_state(
            self.optimizer, state_dict["optimizer"], self._parameter_names(), state_dict.get("parameter_names")
        )
        for key, pairs in sorted(changes.items()):
            logger.info("Optimizer: %s changes: %s", key, ", ".join(f"{a} -> {b}" for a, b in sorted(pairs, key=repr)))
        super().load_state_dict(state_dict)
        self._num_batches = state_dict.get("num_batches", (state_dict["iteration"] + 1) * self._accumulate)
        if self._scaler.is_enabled() and state_dict["grad_scaler"]:
            self._scaler.load_state_dict(state_dict["grad_scaler"])
        self._loaded = state_dict

    def _parameter_names(self) -> list[str] | None:
        """Names of the optimizer's parameters, in the order of its groups; None if the model lacks one of them."""
        names = {parameter: name for name, parameter in _unwrapped(self.model).named_parameters()}
        found = [names.get(each) for group in self.optimizer.param_groups for each in group["params"]]
        return None if None in found else [name for name in found if name is not None]


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
