"""detrx: the DETR family on Detectron2, with its own C++/CUDA kernels.

Importing the package is cheap: it loads neither torch nor the compiled extension. `Predictor` is loaded when asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrx.predictor import Predictor

__all__ = ["Predictor", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from detrx.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
