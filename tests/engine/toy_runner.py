"""The training script in a process of its own. Imported once, by the server that forks those processes."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the toy runs are about CPUs, also where there is a GPU

import multiprocessing
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  which optimizers import
import torch.utils.tensorboard  # noqa: F401

from detrx.cli import lazyconfig_train_net
from detrx.engine import load_config

HERE = Path(__file__).parent
CONFIG = str(HERE / "toy_config.py")

load_config(CONFIG, ["train.seed=1"])  # for what it imports


def run(arguments: list[str], console: str, environment: dict[str, str], new_group: bool = False) -> None:
    """Run the script and end this process with its exit code; 70 for an exception."""
    if new_group:
        os.setpgrp()
    os.environ.update(environment)
    # As in a process that a shell has started; else loading workers would be children of one more server.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    code = 70
    try:
        code = lazyconfig_train_net.main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.exit(code)
