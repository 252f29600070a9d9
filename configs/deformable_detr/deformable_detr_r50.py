"""Deformable DETR, one-stage: ResNet-50, 300 queries, 12 epochs of COCO."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import TimmBackbone

from ..common.data.coco import dataloader
from ..common.models.deformable_detr import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_12ep as lr_multiplier
from ..common.train import train

model.backbone = L(TimmBackbone)(
    name="resnet50",
    out_features=["res3", "res4", "res5"],
    pretrained=True,
    freeze_at=2,
    frozen_batch_norm=True,
)

optimizer.params.lr_factor_func.factors = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_point": 0.1}
