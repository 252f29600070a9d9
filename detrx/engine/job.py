"""Running a function in all processes of a job, and turning errors and signals into exit codes."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch.multiprocessing import ProcessExitedException

from detrx.console import print_anything
from detrx.d2.engine import launch
from detrx.d2.utils import comm
from detrx.engine.config import ConfigError, load_config
from detrx.engine.devices import check_device
from detrx.engine.limits import TORCHRUN, check_job, check_settings
from detrx.errors import user_message

__all__ = ["run_job"]

Function = Callable[[argparse.Namespace, DictConfig], None]

_WAIT_FOR_RANK_0 = 3  # seconds
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say if another process is gone."""
_OTHER_HAS_ENDED = "another process of the job has ended, see its error"


def run_job(function: Function, args: argparse.Namespace) -> int:
    """Call ``function(args, config)`` in every process of the job.

    Under torchrun this process is one of them. Otherwise ``--num-gpus``, ``--num-machines``, ``--machine-rank`` and
    ``--dist-url`` say how many to start and how they connect. The config is that of ``--config-file`` and the
    overrides. Its ``train.device`` determines the backend: NCCL for GPUs, with one GPU per process, and gloo otherwise.
    A mistake of the user is reported in one line on stderr.

    Returns:
        The exit code: 0; 2 if the config cannot be used or its device does not exist; 1 for other mistakes of the user;
        128 + the number of the signal that ended the training.
    """
    try:
        check_job(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if all(name in os.environ for name in TORCHRUN):
        try:
            return _guarded(_in_torchrun, function, args, rank=int(os.environ["RANK"]))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    if args.num_gpus * args.num_machines == 1:
        return _guarded(_alone, function, args)
    return _guarded(_launch, function, args)


def _alone(function: Function, args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    check_device(cfg.train.device)
    function(args, cfg)


def _in_torchrun(function: Function, args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    processes, is_alone = int(os.environ["LOCAL_WORLD_SIZE"]), os.environ["WORLD_SIZE"] == "1"
    device = check_device(cfg.train.device, None if is_alone else processes, f"LOCAL_WORLD_SIZE={processes}")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if device.index is None else device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    comm.create_local_process_group(processes)
    function(args, cfg)


def _launch(function: Function, args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    device = check_device(cfg.train.device, args.num_gpus, f"--num-gpus={args.num_gpus}")
    check_settings(cfg, 1 if args.eval_only else args.num_gpus * args.num_machines)
    previous = {number: signal.signal(number, _pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.nullcontext() if device.type == "cuda" else _hidden_gpus():
            launch(
                _spawned,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(function, args),
            )
    except ProcessExitedException as error:  # the process has reported its error
        raise SystemExit(error.exit_code if error.exit_code >= 0 else 128 - error.exit_code) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _hidden_gpus() -> Iterator[None]:
    """Hide the GPUs from processes started in this context, because `launch` uses NCCL whenever it sees one."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _spawned(function: Function, args: argparse.Namespace) -> None:
    code = _guarded(_connected, function, args, rank=comm.get_rank())
    dist.destroy_process_group()
    if code:
        sys.exit(code)


def _connected(function: Function, args: argparse.Namespace) -> None:
    function(args, load_config(args.config_file, args.opts))


def _guarded(
    run: Callable[[Function, argparse.Namespace], None], function: Function, args: argparse.Namespace, rank: int = 0
) -> int:
    print_anything()
    try:
        run(function, args)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        message = _OTHER_HAS_ENDED if _is_lost_connection(error) else user_message(error)
        if message is None:
            raise
        if rank:  # rank 0 usually has the same error, and its end also ends this process
            time.sleep(_WAIT_FOR_RANK_0)
        print(f"error{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _is_lost_connection(error: Exception) -> bool:
    """Whether a process that this one waits for has ended, which has reported why."""
    return isinstance(error, RuntimeError) and dist.is_initialized() and any(each in str(error) for each in _LOST)


def _pass_on(number: int, frame) -> None:
    """Forward a signal to the started processes. They expect a Ctrl-C in a terminal to arrive twice."""
    for process in multiprocessing.active_children():
        if process.pid is not None:  # None: not started
            os.kill(process.pid, number)
