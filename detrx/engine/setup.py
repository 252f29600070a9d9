"""Preparing the output folder, logging and seeds of a run, in every process."""

import argparse
import logging
import os

import torch
from omegaconf import DictConfig

from detrx import collect_env
from detrx.config_zoo.overrides import escaped
from detrx.d2 import provider
from detrx.d2.utils import comm, seed_all_rng, setup_logger
from detrx.engine.output_folder import TRAINING_CONFIG, in_main_process, lock, set_earlier_run_aside
from detrx.engine.settings import changed_settings, describe_changes, saved_config

__all__ = ["set_up"]

logger = logging.getLogger(__name__)


def set_up(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Prepare a training or, with ``args.eval_only``, an evaluation. Every process must call it.

    It does what Detectron2's `default_setup` does, except that a training has its folder to itself: another one that
    still runs there is an error, and the files of an earlier one are moved to `previous-<n>` in it, unless it is
    resumed. Writing the config is left to the caller, who knows when the run can begin.

    Raises:
        InvalidInputError: the folder cannot be used.
    """
    settings, rank = cfg.train, comm.get_rank()
    folder = settings.output_dir
    moved = in_main_process(lambda: _prepare(folder, bool(args.eval_only), bool(args.resume)))
    if moved:
        settings.init_checkpoint = escaped(_moved(settings.init_checkpoint, folder, moved))
    for name in ("fvcore", "detectron2", "detrx") if provider() == "detectron2" else ("fvcore", "detrx"):
        setup_logger(os.path.join(folder, "log.txt"), rank, name=name)

    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Command line arguments: %s", args)
    if os.path.isfile(args.config_file):
        with open(args.config_file, encoding="utf-8", errors="replace") as file:
            logger.info("Contents of args.config_file=%s:\n%s", args.config_file, file.read())
    logger.info("Detectron2's API comes from: %s", provider())
    if comm.is_main_process():
        logger.info("Environment:\n%s", "\n".join(f"{name}: {value}" for name, value in collect_env.collect().items()))
    if moved:
        logger.warning("%s had the files of an earlier training. They are in %s now.", folder, moved)
    elif args.resume and not args.eval_only:
        _log_changes(cfg)

    seed_all_rng(None if settings.seed < 0 else settings.seed + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    if precision := settings.get("float32_precision"):
        torch.set_float32_matmul_precision(precision)


def _prepare(folder: str, evaluates: bool, resumes: bool) -> str:
    os.makedirs(folder, exist_ok=True)
    if evaluates:
        return ""
    lock(folder)
    return "" if resumes and os.path.isfile(os.path.join(folder, "last_checkpoint")) else set_earlier_run_aside(folder)


def _moved(path: str, folder: str, aside: str) -> str:
    """Where a file is after the files of a folder have been moved."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(folder)) if path and "://" not in path else ".."
    there = os.path.join(aside, inside)
    return there if not inside.startswith("..") and os.path.exists(there) and not os.path.exists(path) else path


def _log_changes(cfg: DictConfig) -> None:
    before = saved_config(os.path.join(cfg.train.output_dir, TRAINING_CONFIG))
    changes = {} if before is None else changed_settings(before, cfg)
    for change in describe_changes(changes):
        logger.warning("--resume: a setting of the run has changed, and its new value counts: %s", change)
    if "train.init_checkpoint" in changes:
        logger.warning("--resume: train.init_checkpoint has no effect, because the last checkpoint is loaded")
