"""The registry of meta-architectures and the step from network to output coordinates."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
else:
    from detrx.d2.embedded.modeling import META_ARCH_REGISTRY, detector_postprocess

__all__ = ["META_ARCH_REGISTRY", "detector_postprocess"]
