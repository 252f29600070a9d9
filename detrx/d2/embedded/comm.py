"""Communication between the processes of a job; every function also works when there is only one.

Processes may come from :func:`detrx.d2.engine.launch`, from ``torchrun``, or from any other starter that has called
``torch.distributed.init_process_group``.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from detrx.errors import InvalidInputError

_local_size: int | None = None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes in the job."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Index of this process in the job."""
    return dist.get_rank() if _distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Say how the processes are spread over machines. Every process of the job must call it, once it has its rank.

    Args:
        num_workers_per_machine: processes on each machine; consecutive ranks share a machine.
    """
    global _local_size
    if get_world_size() % num_workers_per_machine != 0:
        raise InvalidInputError(
            f"{get_world_size()} processes do not divide into machines of {num_workers_per_machine}"
        )
    _local_size = num_workers_per_machine


def get_local_rank() -> int:
    """Index of this process on its machine."""
    return get_rank() % get_local_size()


def get_local_size() -> int:
    """Number of the job's processes on this machine; see :func:`create_local_process_group`."""
    if not _distributed():
        return 1
    if _local_size is None:
        raise RuntimeError("call comm.create_local_process_group() after init_process_group()")
    return _local_size


def is_main_process() -> bool:
    """True in the process of rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process of the job is here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _gloo_group():
    """A group of all ranks that moves pickled objects through host memory."""
    return _gloo_beside_nccl() if dist.get_backend() == "nccl" else dist.group.WORLD


@functools.lru_cache
def _gloo_beside_nccl():
    # Only this group is kept: while anything refers to a gloo group, destroy_process_group() does not end its threads.
    return dist.new_group(backend="gloo")


def all_gather(data: Any) -> list[Any]:
    """Picklable ``data`` of every rank, as a list in rank order, on every rank."""
    if get_world_size() == 1:
        return [data]
    group = _gloo_group()
    output = [None] * dist.get_world_size(group)
    dist.all_gather_object(output, data, group=group)
    return output


def gather(data: Any, dst: int = 0) -> list[Any]:
    """Picklable ``data`` of every rank, as a list in rank order, on rank ``dst``; an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    group = _gloo_group()
    output = [None] * dist.get_world_size(group) if dist.get_rank(group) == dst else None
    dist.gather_object(data, output, dst=dst, group=group)
    return output or []


def shared_random_seed() -> int:
    """A random number that is the same on every rank; all ranks must call it. It draws from numpy's generator."""
    return all_gather(np.random.randint(2**31))[0]  # noqa: NPY002 the global generator is the seeded one
