"""Backbones of the papers, with weights from ImageNet.

Channels of res3, res4 and res5, for `model.neck.in_channels`:
    resnet18                   128, 256, 512
    resnet50, resnet101        512, 1024, 2048
    swin_tiny, convnext_tiny   192, 384, 768
    swin_large                 384, 768, 1536
"""

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

convnext_tiny = L(TimmBackbone)(
    name="convnext_tiny.fb_in22k",
    out_features=["res3", "res4", "res5"],
    pretrained=True,
    norm_features=True,
    model_args=dict(drop_path_rate=0.2),
)
