"""Backbones of the papers, with weights from ImageNet."""

import copy

from detrx.d2.config import LazyCall as L
from detrx.modeling import TimmBackbone

resnet50 = L(TimmBackbone)(
    name="resnet50.tv_in1k",
    out_features=["res3", "res4", "res5"],
    pretrained=True,
    freeze_at=2,
    frozen_batch_norm=True,
)
resnet18 = copy.deepcopy(resnet50)
resnet18.name = "resnet18.tv_in1k"
resnet101 = copy.deepcopy(resnet50)
resnet101.name = "resnet101.tv_in1k"

swin_tiny = L(TimmBackbone)(
    name="swin_tiny_patch4_window7_224.ms_in1k",
    out_features=["res3", "res4", "res5"],
    pretrained=True,
    norm_features=True,
    model_args=dict(drop_path_rate=0.2),
)
swin_large = copy.deepcopy(swin_tiny)
swin_large.name = "swin_large_patch4_window12_384.ms_in22k"
convnext_tiny = copy.deepcopy(swin_tiny)
convnext_tiny.name = "convnext_tiny.fb_in22k"

# Channels of the maps by the name of the backbone, for `model.neck.in_channels`.
CHANNELS = {
    resnet18.name: dict(res2=64, res3=128, res4=256, res5=512),
    resnet50.name: dict(res2=256, res3=512, res4=1024, res5=2048),
    resnet101.name: dict(res2=256, res3=512, res4=1024, res5=2048),
    swin_tiny.name: dict(res2=96, res3=192, res4=384, res5=768),
    swin_large.name: dict(res2=192, res3=384, res4=768, res5=1536),
    convnext_tiny.name: dict(res2=96, res3=192, res4=384, res5=768),
}
