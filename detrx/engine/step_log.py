"""Losses and gradient norms of training steps: kept on the device, then fetched and checked for many steps at once."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from detrx.d2.utils import EventStorage, comm
from detrx.errors import NonFiniteError

__all__ = ["StepLog"]

_BLOCK = 512  # exchanged vectors are padded to a multiple, so sizes usually agree even if processes have other losses


@dataclass(frozen=True)
class _Step:
    """A step on the device.

    Attributes:
        losses: (batches, losses) float32.
        norm: of the gradient, () float32; None if gradients are not clipped.
        image_ids: of each batch.
    """

    iteration: int
    names: tuple[str, ...]
    losses: Tensor
    norm: Tensor | None
    data_time: float
    image_ids: list[list[Any]]


@dataclass(frozen=True)
class _Fetched:
    """A step on the host.

    Attributes:
        step: as recorded by this process.
        losses: (processes, batches, losses) float32.
        norms: of each process; empty if gradients are not clipped.
        data_times: of each process.
    """

    step: _Step
    losses: Tensor
    norms: list[float]
    data_times: list[float]

    @property
    def row(self) -> int:
        """Index of this process."""
        return comm.get_rank() if len(self.losses) > 1 else 0

    def mean_losses(self) -> dict[str, float]:
        """Mean losses over batches and processes, by name."""
        of_processes = [losses.double().mean(0).tolist() for losses in self.losses]
        columns = zip(*of_processes, strict=True)
        return {name: sum(column) / len(of_processes) for name, column in zip(self.step.names, columns, strict=True)}


class StepLog:
    """Collects the scalars of training steps until they are put into the event storage.

    Adding a step does not wait for the device. Fetching costs one copy to the host and, with several processes, one
    small all-reduce, for any number of steps. All processes of a training must fetch after the same steps.

    Args:
        overflow_is_normal: an infinite gradient is not an error, because the loss scale adapts to it.
    """

    def __init__(self, overflow_is_normal: bool = False):
        self._overflow_is_normal = overflow_is_normal
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        """Number of steps that have not been fetched."""
        return len(self._steps)

    def add(
        self,
        iteration: int,
        names: Sequence[str],
        losses: Tensor,
        norm: Tensor | None,
        data_time: float,
        batches: Sequence[Sequence[dict[str, Any]]],
    ) -> None:
        """Record a step.

        Args:
            names: of the losses.
            losses: (batches, losses) float32.
            norm: of the gradient, () float32; None if gradients are not clipped.
            data_time: seconds that this process waited for data.
            batches: from which the losses were computed.
        """
        image_ids = [[image.get("image_id", image.get("file_name")) for image in batch] for batch in batches]
        self._steps.append(_Step(iteration, tuple(names), losses.detach(), norm, data_time, image_ids))

    def fetch(self, storage: EventStorage, signal: int = 0) -> int:
        """Put the scalars of all steps into the storage, each with its iteration.

        Args:
            signal: number of the signal that this process received, or 0.

        Returns:
            The largest signal number of all processes.

        Raises:
            NonFiniteError: a loss or the gradient of a step is not finite; the scalars of earlier steps are in the
                storage. All processes raise it.
            RuntimeError: the processes have losses of different names.
        """
        steps, self._steps = self._steps, []
        fetched, signal = _fetch(steps, signal)
        for each in fetched:
            mean = each.mean_losses()
            if problem := self._problem(each, mean):
                raise _error(problem, each, [ids for part in comm.all_gather(_suspects(each)) for ids in part])
            _put(storage, each, mean)
        return signal

    def check(self) -> None:
        """Look for the cause of a failure in the steps of this process, without communicating with the others.

        Raises:
            NonFiniteError: a loss or the gradient of a step that has not been fetched is not finite.
        """
        steps, self._steps = self._steps, []
        for each in _fetch_alone(steps):
            if problem := self._problem(each, each.mean_losses()):
                raise _error(problem, each, _suspects(each))

    def _problem(self, each: _Fetched, mean: dict[str, float]) -> str:
        """What is wrong with a step, or an empty string."""
        iteration, total = each.step.iteration, sum(mean.values())
        if not math.isfinite(total):
            bad = ", ".join(f"{name}={value}" for name, value in mean.items() if not math.isfinite(value))
            return f"loss is not finite in iteration {iteration}: {bad or f'total_loss={total}'}"
        bad_norms = [norm for norm in each.norms if not math.isfinite(norm)]
        if bad_norms and not self._overflow_is_normal:
            losses = ", ".join(f"{name}={value:.6g}" for name, value in mean.items())
            return f"the norm of the gradient is {bad_norms[0]} in iteration {iteration}, with finite losses: {losses}"
        return ""


def _error(problem: str, each: _Fetched, image_ids: list[Any]) -> NonFiniteError:
    several = "batches" if len(each.step.image_ids) > 1 else "batch"
    return NonFiniteError(
        f"{problem}; image ids of the {several}: {image_ids}. Lower the learning rate, clip gradients, or check the "
        "annotations of these images"
    )


def _suspects(each: _Fetched) -> list[Any]:
    """Images of this process's batches with a loss that is not finite; of all its batches if no process has any."""
    if each.losses.isfinite().all():
        return [image for batch in each.step.image_ids for image in batch]
    finite = each.losses[each.row].isfinite().all(1).tolist()
    return [
        image for batch, is_finite in zip(each.step.image_ids, finite, strict=True) if not is_finite for image in batch
    ]


def _put(storage: EventStorage, each: _Fetched, mean: dict[str, float]) -> None:
    at = each.step.iteration
    storage.put_scalar("rank_data_time", each.step.data_time, cur_iter=at)
    storage.put_scalar("data_time", max(each.data_times), cur_iter=at)
    storage.put_scalar("total_loss", sum(mean.values()), cur_iter=at)
    if len(mean) > 1:
        for name, value in mean.items():
            storage.put_scalar(name, value, cur_iter=at)
    if each.norms:
        norm = each.norms[each.row]
        if math.isfinite(norm):
            storage.put_scalar("grad_norm", norm, cur_iter=at)


def _fetch_alone(steps: list[_Step]) -> list[_Fetched]:
    return _split(steps, _on_device(steps)[None].cpu(), [[step.data_time for step in steps]]) if steps else []


def _fetch(steps: list[_Step], signal: int) -> tuple[list[_Fetched], int]:
    if not steps or comm.get_world_size() == 1:
        return _fetch_alone(steps), signal
    own = _on_device(steps)
    head = torch.tensor([signal, _fingerprint(steps), *(step.data_time for step in steps)])
    if own.is_cuda:
        head = head.pin_memory()
    table = _of_all_processes(torch.cat([head.to(own.device, non_blocking=True), own])).cpu()
    signals, fingerprints = table[:, 0].tolist(), table[:, 1].tolist()
    if len(set(fingerprints)) > 1:
        raise RuntimeError(
            f"the processes have different losses in iterations {steps[0].iteration} to {steps[-1].iteration}; "
            f"process {comm.get_rank()} has {', '.join(steps[-1].names)}"
        )
    table = table[:, : len(head) + len(own)]
    return _split(steps, table[:, len(head) :], table[:, 2 : len(head)].tolist()), int(max(signals))


def _on_device(steps: list[_Step]) -> Tensor:
    """All losses, then all norms: (N,) float32."""
    norms = [step.norm.reshape(1).float() for step in steps if step.norm is not None]
    return torch.cat([*(step.losses.flatten() for step in steps), *norms])


def _of_all_processes(own: Tensor) -> Tensor:
    """Gather the vectors (N,) of all processes as (processes, N), with N rounded up to a multiple of 512."""
    own = F.pad(own, (0, -len(own) % _BLOCK))
    table = own.new_zeros(comm.get_world_size(), len(own))
    table[comm.get_rank()] = own
    dist.all_reduce(table)  # every backend supports this sum
    return table


def _fingerprint(steps: list[_Step]) -> int:
    """A hash of iterations and names of losses, small enough to be exact in float32."""
    text = "\n".join(" ".join([str(step.iteration), str(len(step.losses)), *step.names]) for step in steps)
    return zlib.crc32(text.encode()) >> 8


def _split(steps: list[_Step], table: Tensor, data_times: list[list[float]]) -> list[_Fetched]:
    """Split a table (processes, N), laid out by :func:`_on_device`, into steps."""
    sizes = [step.losses.numel() for step in steps]
    *losses, norms = table.split([*sizes, table.shape[1] - sum(sizes)], dim=1)
    norm_columns = iter(norms.t().tolist())
    return [
        _Fetched(
            step,
            part.unflatten(1, step.losses.shape),
            [] if step.norm is None else next(norm_columns),
            list(times),
        )
        for step, part, times in zip(steps, losses, zip(*data_times, strict=True), strict=True)
    ]
