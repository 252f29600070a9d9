"""Train or evaluate the model of a config file.

    lazyconfig_train_net.py --config-file configs/deformable_detr/deformable_detr_digits.py train.output_dir=output/a
    lazyconfig_train_net.py --config-file ... --resume
    lazyconfig_train_net.py --config-file ... --eval-only train.init_checkpoint=output/a/model_final.pth

With --eval-only, --resume evaluates the last checkpoint in train.output_dir. Start several processes with --num-gpus or
torchrun. Results are written to train.output_dir: config.yaml (eval_config.yaml by --eval-only), log.txt, metrics.json,
TensorBoard events, checkpoints, and inference/coco_instances_results.json with the detections of the last evaluation. A
new training moves what an earlier one has left there to previous-1 in it.
"""

import argparse
import contextlib
import functools
import logging
import os
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from detrx.checkpoint.checkpointer import AtomicCheckpointer
from detrx.d2.config import instantiate
from detrx.d2.engine import create_ddp_model, default_argument_parser, hooks
from detrx.d2.evaluation import inference_on_dataset, print_csv_format
from detrx.d2.utils import comm
from detrx.engine import (
    BestCheckpoint,
    CheckpointHook,
    ConfigError,
    EvaluationHook,
    IterationTimer,
    ModelEMA,
    StopHook,
    Trainer,
    build_evaluator,
    build_optimizer,
    build_writers,
    check_evaluation,
    resolve_seed,
    run_job,
)
from detrx.engine.fit import check_classes, warn_of_too_many_boxes
from detrx.engine.host_memory import keep_freed_memory
from detrx.engine.limits import check_settings
from detrx.engine.output_folder import EVALUATION_CONFIG, TRAINING_CONFIG, in_main_process, last_set_aside, write_config
from detrx.engine.setup import set_up
from detrx.engine.trained import build_model
from detrx.modeling import DetectionTransformer

logger = logging.getLogger("detrx.train_net")


def do_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluate a model (not wrapped for distributed training) and print the table of its metrics."""
    if "evaluator" not in cfg.dataloader:
        return {}
    check_classes(cfg, "test")
    loader, evaluator, amp = instantiate(cfg.dataloader.test), build_evaluator(cfg), cfg.train.amp
    precision = (
        torch.autocast(torch.device(cfg.train.device).type, getattr(torch, amp.dtype))
        if amp.evaluate
        else contextlib.nullcontext()
    )
    with torch.inference_mode(), precision:
        results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def do_train(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Train, from the last checkpoint in the output folder if ``--resume`` is given, and evaluate."""
    settings = cfg.train
    if torch.device(settings.device).type == "cpu":
        keep_freed_memory()
    if "evaluator" in cfg.dataloader:
        check_classes(cfg, "test")
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    model.to(settings.device)
    optimizer = build_optimizer(cfg.optimizer, model)
    train_loader = instantiate(cfg.dataloader.train)
    check_classes(cfg, "train")
    if comm.is_main_process():
        warn_of_too_many_boxes(model, train_loader)

    ddp = {"device_ids": [comm.get_local_rank()], **settings.ddp}
    if torch.device(settings.device).type != "cuda":
        ddp["device_ids"] = None
    wrapped = create_ddp_model(model, **ddp)
    ema = ModelEMA(model, settings.ema.decay, settings.ema.warmup) if settings.ema.enabled else None
    trainer = Trainer(
        wrapped,
        train_loader,
        optimizer,
        amp_dtype=getattr(torch, settings.amp.dtype) if settings.amp.enabled else None,
        max_norm=settings.clip_grad.max_norm if settings.clip_grad.enabled else None,
        norm_type=settings.clip_grad.norm_type,
        accumulate=settings.accumulate,
        ema=ema,
        seed=settings.seed,
        log_period=settings.log_period,
    )
    averaged: dict[str, Any] = {} if ema is None else {"ema": ema}
    checkpointer = AtomicCheckpointer(model, settings.output_dir, trainer=trainer, **averaged)
    resumed = args.resume and checkpointer.has_checkpoint()
    evaluated = ema.model if ema and settings.ema.evaluate else model
    logger.info("Evaluations use the %s weights.", "trained" if evaluated is model else "averaged (EMA)")

    checkpoint_hook = CheckpointHook(checkpointer, **settings.checkpointer)
    trainer.register_hooks(
        [
            IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            checkpoint_hook,
            EvaluationHook(settings.eval_period, evaluated, functools.partial(do_test, cfg, evaluated)),
        ]
    )
    if settings.best_metric:
        best = AtomicCheckpointer(model, settings.output_dir, tag_last=False, **averaged)
        trainer.register_hooks([BestCheckpoint(settings.eval_period, best, settings.best_metric)])

    if resumed:
        checkpointer.resume()
        start_iter = trainer.iter + 1
        if start_iter > settings.max_iter:
            raise ConfigError(f"{checkpointer.get_checkpoint_file()} is beyond train.max_iter={settings.max_iter}")
    else:
        start_iter = 0
        _start_anew(args, settings, checkpointer)
    if isinstance(model, DetectionTransformer):
        model.prepare_training()
    if ema is not None and ema.updates == 0:  # weights may have been loaded, or broadcast from rank 0, since
        ema.reset(model)

    if comm.is_main_process():
        writers = build_writers(settings.output_dir, settings.max_iter, start_iter, resumed)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=settings.log_period)])
    trainer.register_hooks([StopHook(checkpoint_hook)])
    _save_config(cfg, TRAINING_CONFIG)
    trainer.train(start_iter, settings.max_iter)


def _start_anew(args: argparse.Namespace, settings: DictConfig, checkpointer: AtomicCheckpointer) -> None:
    if args.resume:
        earlier = last_set_aside(settings.output_dir)
        hint = f" (the files of an earlier run are in {earlier})" if earlier else ""
        logger.warning("--resume: there is no checkpoint in %s%s; starting from scratch", settings.output_dir, hint)
    checkpointer.load(settings.init_checkpoint, checkpointables=[], fewer_queries=settings.fewer_queries)


def _save_config(cfg: DictConfig, name: str) -> None:
    path = os.path.join(cfg.train.output_dir, name)
    in_main_process(lambda: write_config(cfg, path))
    logger.info("Full config saved to %s", path)


def do_eval(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Evaluate ``train.init_checkpoint``, or the last checkpoint in the output folder if ``--resume`` is given."""
    settings = cfg.train
    model = build_model(cfg, settings.device)
    checkpointer = AtomicCheckpointer(model, settings.output_dir, prefer_ema=settings.ema.evaluate)
    path = checkpointer.get_checkpoint_file() if args.resume else settings.init_checkpoint
    if not path:
        raise ConfigError(
            f"--eval-only: there is no checkpoint in {settings.output_dir}"
            if args.resume
            else "--eval-only needs train.init_checkpoint=FILE, or --resume for the last one in train.output_dir"
        )
    checkpointer.load(path, strict=True, fewer_queries=settings.fewer_queries)
    _save_config(cfg, EVALUATION_CONFIG)
    do_test(cfg, model)


def run(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Train or evaluate, in every process of the job."""
    settings = cfg.train
    if settings.amp.dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"train.amp.dtype={settings.amp.dtype} is neither bfloat16 nor float16")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if not args.eval_only:
        check_evaluation(cfg)
    check_settings(cfg, 1 if args.eval_only else comm.get_world_size())
    resolve_seed(cfg, args.resume)
    set_up(cfg, args)
    if args.eval_only:
        do_eval(args, cfg)
    else:
        do_train(args, cfg)


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate in the requested number of processes, and return the exit status."""
    return run_job(run, default_argument_parser().parse_args(argv))
