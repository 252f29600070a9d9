"""Deformable DETR, one-stage: ResNet-50, 300 queries."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import TimmBackbone

from ..common.models.deformable_detr import model

model.backbone = L(TimmBackbone)(
    name="resnet50",
    out_features=["res3", "res4", "res5"],
    pretrained=True,
    freeze_at=2,
    frozen_batch_norm=True,
)
