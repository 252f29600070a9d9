"""Trained models for the tools."""

import copy
from typing import Any

import torch
from torch import nn

from detrx.checkpoint.checkpointer import AtomicCheckpointer, CheckpointError
from detrx.d2.config import instantiate
from detrx.engine.config import without_pretrained

__all__ = ["load_model"]


def load_model(cfg: Any, weights: str, device: str = "auto") -> nn.Module:
    """The model of a config in evaluation mode, with the weights of a checkpoint (the averaged ones, if it has any).

    Args:
        cfg: the config that it was trained with; its `model` is built.
        weights: file of the checkpoint.
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.

    Raises:
        CheckpointError: there is no checkpoint, or it is of another model.
    """
    if not weights:
        raise CheckpointError("no checkpoint given")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = instantiate(without_pretrained(copy.deepcopy(cfg.model))).to(device).eval()
    AtomicCheckpointer(model, prefer_ema=True).load(weights, checkpointables=[], strict=True)
    return model
