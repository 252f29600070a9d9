"""The registry of meta-architectures and the step from network to output coordinates."""

from __future__ import annotations

from fvcore.common.registry import Registry

from detrx.d2.embedded.structures import Instances

META_ARCH_REGISTRY = Registry("META_ARCH")
"""Whole models, built from a config; they take Detectron2's ``list[dict]``."""


def detector_postprocess(results: Instances, output_height: int, output_width: int) -> Instances:
    """Bring detections to the output resolution: scale, clip to the image, drop boxes without area.

    Args:
        results: detections with ``pred_boxes`` in the frame ``results.image_size``. Its boxes are modified.
        output_height, output_width: pixels of the output frame.

    Returns:
        Instances of image size (output_height, output_width), possibly fewer.
    """
    if not results.has("pred_boxes"):
        raise AssertionError("Detections have no field 'pred_boxes'")
    height, width = results.image_size
    results = Instances((output_height, output_width), **results.get_fields())
    boxes = results.pred_boxes
    boxes.scale(output_width / width, output_height / height)
    boxes.clip(results.image_size)
    return results[boxes.nonempty()]
