"""The seed of schedules that differ from run to run."""

import os
import secrets

SEED_VARIABLE = "DETRX_EMULATION_SEED"


def base_seed() -> int:
    """That of DETRX_EMULATION_SEED, or a random one that stays: child processes inherit it."""
    text = os.environ.setdefault(SEED_VARIABLE, str(1 + secrets.randbelow(2**31)))
    if not text.isdecimal():
        raise ValueError(f"{SEED_VARIABLE} is {text!r}, expected a number")
    return int(text)
