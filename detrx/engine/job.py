"""Running a function in the processes of a job, whoever starts them, with clean ends for errors and signals."""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from detrx.d2.engine import launch
from detrx.d2.utils import comm
from detrx.engine.config import ConfigError
from detrx.engine.errors import user_error

__all__ = ["run_job"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_WAIT_FOR_RANK_0 = 3  # seconds


def run_job(function: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Call ``function(args)`` in every process of the job.

    Under torchrun this process is one of them; otherwise ``--num-gpus``, ``--num-machines``, ``--machine-rank`` and
    ``--dist-url`` say how many to start. A mistake of the user becomes one line on stderr.

    Returns:
        The exit code: 2 for a config that cannot be used, 1 for another mistake of the user, 128 + number of the
        signal that ended the training.
    """
    if all(name in os.environ for name in _TORCHRUN):
        return _run_in_torchrun(function, args)
    if args.num_gpus * args.num_machines == 1:
        return _guarded(function, args)
    previous = {number: signal.signal(number, _pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        launch(
            _spawned,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(function, args),
        )
    except ProcessExitedException as error:  # it has told why
        return error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _run_in_torchrun(function: Callable, args: argparse.Namespace) -> int:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        return _guarded(function, args)
    finally:
        dist.destroy_process_group()


def _spawned(function: Callable, args: argparse.Namespace) -> None:
    code = _guarded(function, args)
    dist.destroy_process_group()
    if code:
        sys.exit(code)


def _guarded(function: Callable, args: argparse.Namespace) -> int:
    try:
        function(args)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        rank = comm.get_rank()
        if rank:  # mostly rank 0 has the same error, and its end is ours
            time.sleep(_WAIT_FOR_RANK_0)
        print(f"error{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _pass_on(number: int, frame) -> None:
    """Leave the decision to the started processes. A Ctrl-C in a terminal reaches them twice, which they know."""
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)
