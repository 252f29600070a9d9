"""Seeding."""

import logging
import os
import random

import numpy as np
import torch


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, numpy's and torch's generators (all devices); None draws a seed from the operating system."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 the global generator is what has to be seeded
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
