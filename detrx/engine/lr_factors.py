"""Learning rates of parts of a model."""

import math
from collections.abc import Mapping

__all__ = ["LRFactors"]


class LRFactors:
    """The ``lr_factor_func`` of `get_default_optimizer_params`, as a value that a config can hold and save.

    Args:
        factors: from a part of dotted parameter names, such as "backbone" or "sampling_offsets", to the factor for
            all parameters whose names have this part. Several factors for one parameter are multiplied.
    """

    def __init__(self, factors: Mapping[str, float]):
        self.factors = dict(factors)

    def __call__(self, name: str) -> float:
        parts = name.split(".")
        return math.prod(factor for part, factor in self.factors.items() if part in parts)
