"""Detections that take objects one after the other, as in average precision."""

import numpy as np

__all__ = ["match_greedily"]


def match_greedily(preference: np.ndarray) -> np.ndarray:
    """Give each detection, the best first, the object that it prefers among those that no better one has taken.

    Args:
        preference: (D, G) of D detections by falling score and G objects, such as the IoU; negative where a detection
            must not take an object. The first of equal ones is taken.

    Returns:
        (D,) index of the object that each detection takes, -1 for none.
    """
    taken = np.full(len(preference), -1)
    left = preference.copy()
    for detection in np.flatnonzero((preference >= 0).any(1)).tolist():
        best = int(left[detection].argmax())
        if left[detection, best] >= 0:
            taken[detection] = best
            left[:, best] = -1
    return taken
