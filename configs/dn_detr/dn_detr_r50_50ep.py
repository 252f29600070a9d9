"""DN-DETR: ResNet-50, 300 anchors, 50 epochs of COCO."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import TimmBackbone

from ..common.data.coco import dataloader
from ..common.models.dn_detr import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_50ep as lr_multiplier
from ..common.train import train

model.backbone = L(TimmBackbone)(
    name="resnet50",
    out_features=["res5"],
    pretrained=True,
    freeze_at=2,
    frozen_batch_norm=True,
)

train.max_iter = 375000
