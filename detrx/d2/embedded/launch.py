"""Starting the processes of a job."""

import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detrx.d2.embedded import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)``: here if one process is asked for, otherwise in new processes that know each other.

    Args:
        num_gpus_per_machine: processes per machine; each gets a GPU, or none has one (gloo).
        num_machines, machine_rank: every machine of the job calls this.
        dist_url: where the processes meet, such as "tcp://127.0.0.1:8686"; "auto": a free port of this machine.
        timeout: of collective operations.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto not supported in multi-machine jobs."
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            dist_url = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
    mp.start_processes(
        _worker,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
    )


def _worker(local_rank, main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        available = torch.cuda.device_count()
        assert num_gpus_per_machine <= available, f"{num_gpus_per_machine} GPUs asked for, {available} available"
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * num_gpus_per_machine + local_rank,
        timeout=timeout,
    )
    comm.create_local_process_group(num_gpus_per_machine)
    comm.synchronize()
    main_func(*args)
