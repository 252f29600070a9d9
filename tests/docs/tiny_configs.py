"""Configs of trainings, made small: what takes time or memory, but not what they are about."""

import copy
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detrx.d2.config import LazyCall as L
from detrx.data import resize_augmentation
from detrx.modeling import TimmBackbone
from tests.modeling.small import SMALL_BACKBONE, SMALL_CHANNELS

SIDE = 64
MOST = {"num_queries": 12, "num_patterns": 5, "hidden_dim": 64, "channels": 8}
"""Arguments anywhere in a model, and the largest values that they keep."""


def shrunk(cfg: DictConfig) -> DictConfig:
    """The config of a training on little data, with a small model of the same kind: in place."""
    shrink_model(cfg.model)
    loaders, train = cfg.dataloader, cfg.train
    for part in (loaders.train, loaders.test):
        part.num_workers = 0
        part.mapper.augmentations = L(resize_augmentation)(size=SIDE, max_size=2 * SIDE)
    loaders.train.total_batch_size = 2
    loaders.train.aspect_ratio_grouping = False
    train.update(max_iter=1, eval_period=1, log_period=1, device="cpu", seed=0)
    train.amp.enabled = False
    train.checkpointer.period = 1
    return cfg


def shrink_model(model: DictConfig) -> None:
    stride = OmegaConf.select(model, "backbone.model_args.output_stride")
    model.backbone = L(TimmBackbone)(
        name="resnet18",
        out_features=list(model.backbone.out_features),
        model_args={**SMALL_BACKBONE, **({} if stride is None else {"output_stride": stride})},
    )
    model.neck.in_channels = [SMALL_CHANNELS[feature] for feature in model.neck.in_features]
    model.tokenizer.embed_dim = 64
    model.tokenizer.position_embedding.num_feats = 32
    model.encoder.num_layers = 1
    limit_numbers(model)


def limit_numbers(node: Any) -> None:
    """Lower the numbers in `MOST`, in all parts of a model."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            limit_numbers(value)
        elif key in MOST and isinstance(value, int):
            node[key] = min(value, MOST[key])


def description(cfg: DictConfig, more: list[object]) -> str:
    """What a training does, but for its learning rates, and for files and datasets that it reads and writes."""
    cfg = copy.deepcopy(cfg)
    del cfg.optimizer, cfg.lr_multiplier
    cfg.train.output_dir = cfg.train.init_checkpoint = ""
    for method in cfg.model.get("methods", ()):
        if "checkpoint" in method:
            method.checkpoint = ""
    for part in ("train", "test"):
        cfg.dataloader[part].dataset.names = ""
    return f"{cfg} {more}"
