"""The small detectors for photographs: those for digits, on an EfficientNet-Lite with weights from ImageNet."""

import copy

from detrx.d2.config import LazyCall as L
from detrx.modeling import TimmBackbone

# docs/backbones.md has the commands that make the files of weights.
efficientnet_lite0 = L(TimmBackbone)(
    name="tf_efficientnet_lite0",
    out_features=["res3", "res4", "res5"],
    checkpoint_path="weights/tf_efficientnet_lite0.safetensors",
    freeze_at=2,
    frozen_batch_norm=True,
)
efficientnet_lite2 = copy.deepcopy(efficientnet_lite0)
efficientnet_lite2.name = "tf_efficientnet_lite2"
efficientnet_lite2.checkpoint_path = "weights/tf_efficientnet_lite2.safetensors"

_CHANNELS = {
    efficientnet_lite0.name: dict(res3=40, res4=112, res5=320),
    efficientnet_lite2.name: dict(res3=48, res4=120, res5=352),
}


def for_photos(model, backbone=efficientnet_lite0):
    """Change a detector for digits into one for photographs, with the classes of COCO."""
    model.backbone = backbone
    model.neck.in_features = backbone.out_features
    model.neck.in_channels = [_CHANNELS[backbone.name][feature] for feature in backbone.out_features]
    model.pixel_mean = [127.0, 127.0, 127.0]
    model.pixel_std = [128.0, 128.0, 128.0]
    model.decoder.heads.num_classes = 80
    model.query_source.num_queries = 100
    model.postprocess.num_detections = 100
