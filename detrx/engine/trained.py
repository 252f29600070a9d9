"""Building and loading the model of a config, for the tools."""

import copy
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from detrx.checkpoint.checkpointer import AtomicCheckpointer, CheckpointError
from detrx.d2.config import instantiate
from detrx.engine.config import without_pretrained

__all__ = ["build_model", "load_model"]


def build_model(cfg: Any, device: str = "auto", pretrained_backbone: bool = False) -> nn.Module:
    """The model of a config in evaluation mode, with random weights.

    Args:
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.
        pretrained_backbone: load the weights that the config names for the backbone.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    described = cfg.model if pretrained_backbone else without_pretrained(copy.deepcopy(cfg.model))
    return instantiate(described).to(device).eval()


def load_model(cfg: Any, weights: str, device: str = "auto") -> nn.Module:
    """The model of a config in evaluation mode, with the weights of a checkpoint: the averaged ones if it has them.

    Args:
        cfg: the config that the model was trained with. With `train.fewer_queries`, the model may have fewer queries
            than the checkpoint, of which it takes the first ones.
        weights: file of the checkpoint.
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.

    Raises:
        CheckpointError: the checkpoint does not exist or is from another model.
    """
    if not weights:
        raise CheckpointError("no checkpoint given")
    model = build_model(cfg, device)
    fewer_queries = OmegaConf.select(cfg, "train.fewer_queries", default=False)
    checkpointer = AtomicCheckpointer(model, prefer_ema=True)
    checkpointer.load(weights, checkpointables=[], strict=True, fewer_queries=fewer_queries)
    return model
