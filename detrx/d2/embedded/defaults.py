"""Command line and model wrapper that most training scripts share."""

import argparse
import os
import sys

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detrx.d2.embedded import comm

__all__ = ["create_ddp_model", "default_argument_parser"]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs) -> nn.Module:
    """``model`` for a job of one process, otherwise a DistributedDataParallel around it.

    Args:
        fp16_compression: send gradients as float16.
        kwargs: further arguments of DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The arguments of a training script.

    Args:
        epilog: what the help text ends with; default: examples.
    """
    examples = f"example: {sys.argv[0]} --config-file cfg.py --num-gpus 8 train.max_iter=1000 optimizer.lr=0.001"
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the output folder")
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus (or processes) *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)")
    user = os.getuid() if hasattr(os, "getuid") else 1
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{2**15 + 2**14 + user % 2**14}",  # fixed per user: a left-over process shows up
        help="where the processes of the job meet, or 'auto'",
    )
    parser.add_argument(
        "opts", default=None, nargs=argparse.REMAINDER, help="config values to change, as path.key=value"
    )
    return parser
