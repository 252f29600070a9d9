"""Checkpoints of a detector: fvcore's `Checkpointer` for jobs of several processes."""

from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer
from torch import nn

from detrx.d2.embedded import comm
from detrx.d2.embedded.file_io import PathManager

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]


class DetectionCheckpointer(Checkpointer):
    """Save ``{"model": state dict, name: state of every checkpointable, ...}``; load that, or a bare state dict.

    Args:
        model: the module, plain or wrapped by DistributedDataParallel.
        save_dir: folder of the checkpoints.
        save_to_disk: default: only the main process does.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager

    def _load_file(self, f: str) -> dict[str, Any]:
        loaded = torch.load(f, map_location="cpu", weights_only=True)
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: dict[str, Any]):
        incompatible = super()._load_model(checkpoint)
        for name in ("pixel_mean", "pixel_std"):  # absent from old checkpoints, and set by the config anyway
            if name in incompatible.missing_keys and name in dict(self.model.named_buffers(recurse=False)):
                incompatible.missing_keys.remove(name)
        return incompatible
