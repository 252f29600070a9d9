"""Training over either Detectron2 provider: what `tools/lazyconfig_train_net.py` is made of."""

from detrx.engine.config import ConfigError, check_evaluation, check_overrides, load_config, resolve_seed
from detrx.engine.ema import ModelEMA
from detrx.engine.evaluation import build_evaluator
from detrx.engine.hooks import BestCheckpoint, CheckpointHook, EvaluationHook, IterationTimer, StopHook
from detrx.engine.job import run_job
from detrx.engine.lr_factors import LRFactors
from detrx.engine.optimizer import build_optimizer
from detrx.engine.rng import preserved_rng
from detrx.engine.trained import load_model
from detrx.engine.trainer import Trainer
from detrx.engine.writers import build_writers
from detrx.errors import NonFiniteError

__all__ = [
    "BestCheckpoint",
    "CheckpointHook",
    "ConfigError",
    "EvaluationHook",
    "IterationTimer",
    "LRFactors",
    "ModelEMA",
    "NonFiniteError",
    "StopHook",
    "Trainer",
    "build_evaluator",
    "build_optimizer",
    "build_writers",
    "check_evaluation",
    "check_overrides",
    "load_config",
    "load_model",
    "preserved_rng",
    "resolve_seed",
    "run_job",
]
