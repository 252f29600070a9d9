"""Checkpoints of a detector: fvcore's `Checkpointer` for jobs of several processes."""

from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detrx.d2.embedded import comm
from detrx.d2.embedded.file_io import PathManager

__all__ = ["DetectionCheckpointer"]


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
