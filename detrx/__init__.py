"""detrx: the DETR family on Detectron2, with its own C++/CUDA kernels.

Importing the package is cheap: it loads neither torch nor the compiled extension.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrx.predictor import Predictor

__all__ = ["Predictor", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The only import against the direction of the layers, for users who write `from detrx import Predictor`. It cannot
    # be at the top: this file runs before any module of detrx, and would load the whole library, in a circle.
    if name == "Predictor":
        from detrx.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
