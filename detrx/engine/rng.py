"""Saving and restoring the random number generators of this process."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "preserved_rng", "set_rng_state"]


def get_rng_state() -> dict[str, Any]:
    """State of the global generators of Python, numpy and torch, in plain types.

    Of torch these are the generators of the CPU and, if CUDA is initialised, of the current CUDA device.
    """
    drawn = np.random.get_state(legacy=False)  # noqa: NPY002 the global generator is what models and mappers draw from
    state = {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(drawn["state"]["key"].astype(np.int64)),
            "rest": [int(drawn["state"]["pos"]), int(drawn["has_gauss"]), float(drawn["gauss"])],
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # reading the state would initialise CUDA, which takes memory on the GPU
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore a state that :func:`get_rng_state` returned."""
    random.setstate(state["python"])
    keys = state["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *state["numpy"]["rest"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the generators after the block, whatever it draws."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
