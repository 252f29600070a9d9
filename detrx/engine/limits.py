"""Numbers in a config and on the command line that cannot be meant."""

import argparse
import math
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detrx.engine.config import ConfigError

__all__ = ["TORCHRUN", "check_job", "check_settings"]

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets."""

_WHOLE = {
    "train.max_iter": 1,
    "train.log_period": 1,
    "train.eval_period": 0,
    "train.accumulate": 1,
    "train.checkpointer.period": 1,
    "train.checkpointer.max_to_keep": 1,
    "train.ema.warmup": 0,
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.num_workers": 0,
    "dataloader.train.prefetch_factor": 1,
    "dataloader.test.batch_size": 1,
    "dataloader.test.num_workers": 0,
}
"""Whole numbers, and the least that each may be."""

_MAY_BE_NONE = ("train.checkpointer.max_to_keep",)
_POSITIVE = ("train.clip_grad.max_norm", "train.clip_grad.norm_type")
_LARGEST_SEED = 2**32 - 1  # of numpy's generator


def check_job(args: argparse.Namespace) -> None:
    """Check the arguments that say how many processes there are.

    Raises:
        ConfigError: a number is impossible, or they contradict torchrun, which has started the processes.
    """
    for name, least in (("num_gpus", 1), ("num_machines", 1), ("machine_rank", 0)):
        if (value := getattr(args, name)) < least:
            raise ConfigError(f"--{name.replace('_', '-')}={value}: expected {least} or more")
    if args.machine_rank >= args.num_machines:
        raise ConfigError(
            f"--machine-rank={args.machine_rank}: expected 0 to {args.num_machines - 1} with "
            f"--num-machines={args.num_machines}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError("--dist-url=auto works on one machine only: give all machines the same tcp://HOST:PORT")
    if args.dist_url != "auto" and not args.dist_url.startswith(("tcp://", "file://", "env://")):
        raise ConfigError(f"--dist-url={args.dist_url}: expected auto or a URL such as tcp://127.0.0.1:29500")
    if all(name in os.environ for name in TORCHRUN):
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        if args.num_gpus not in (1, processes):
            raise ConfigError(
                f"--num-gpus={args.num_gpus}, but torchrun has started {processes} processes on this machine: leave it "
                "out, torchrun's --nproc_per_node counts"
            )


def check_settings(cfg: DictConfig, processes: int = 1) -> None:
    """Check the numbers of ``train`` and of the loaders, before anything is built or written.

    Args:
        processes: that share a training batch.

    Raises:
        ConfigError: a value is of another type or impossible.
    """
    for key, least in _WHOLE.items():
        value = _get(cfg, key)
        if value is None and (key in _MAY_BE_NONE or not _has(cfg, key)):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{key}={value!r}: expected a whole number, {least} or more")
    for key in _POSITIVE:
        value = _get(cfg, key)
        if value is not None and (not _is_number(value) or value <= 0):
            raise ConfigError(f"{key}={value!r}: expected a number above 0")
    decay, lr, seed = (_get(cfg, key) for key in ("train.ema.decay", "optimizer.lr", "train.seed"))
    if decay is not None and (not _is_number(decay) or not 0 <= decay < 1):
        raise ConfigError(f"train.ema.decay={decay!r}: expected a number from 0 to below 1")
    if lr is not None and (not _is_number(lr) or lr < 0 or not math.isfinite(lr)):
        raise ConfigError(f"optimizer.lr={lr!r}: expected a number, 0 or more")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed + processes > _LARGEST_SEED:
        raise ConfigError(f"train.seed={seed!r}: expected a whole number below 2^32, or a negative one to draw a seed")
    size = _get(cfg, "dataloader.train.total_batch_size")
    if size is not None and size % processes:
        raise ConfigError(f"dataloader.train.total_batch_size={size}: expected a multiple of the {processes} processes")
    if not cfg.train.get("output_dir"):
        raise ConfigError("train.output_dir is empty: expected a folder for the files of the run")


def _get(cfg: DictConfig, key: str) -> Any:
    return OmegaConf.select(cfg, key)


def _has(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    return isinstance(node, DictConfig) and name in node


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
