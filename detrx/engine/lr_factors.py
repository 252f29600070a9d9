"""Learning rate factors for parts of a model."""

import math
from collections.abc import Mapping

__all__ = ["LRFactors"]


class LRFactors:
    """An ``lr_factor_func`` for `get_default_optimizer_params` that a config can hold and save.

    Args:
        factors: learning rate factor for each component of dotted parameter names, such as "backbone" or
            "sampling_offsets". If several components of a name have factors, they are multiplied.
    """

    def __init__(self, factors: Mapping[str, float]):
        self.factors = dict(factors)

    def __call__(self, name: str) -> float:
        parts = name.split(".")
        return math.prod(factor for part, factor in self.factors.items() if part in parts)
