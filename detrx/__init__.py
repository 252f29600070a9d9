"""detrx: the DETR family on Detectron2, with its own C++/CUDA kernels.

Importing the package is cheap: it loads neither torch nor the compiled extension.
"""

__version__ = "0.1.0"
