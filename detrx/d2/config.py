"""Lazy configs: `LazyConfig`, `LazyCall`, `instantiate`."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.config import LazyCall, LazyConfig, instantiate
else:
    from detrx.d2.embedded.config import LazyCall, LazyConfig, instantiate

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
