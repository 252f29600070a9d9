"""A small Deformable-DETR++ for digits: trains on two CPU cores in minutes."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import (
    EncoderProposals,
    GIoULoss,
    HungarianMatcher,
    L1Loss,
    MatchingCost,
    Supervision,
    TimmBackbone,
    VarifocalLoss,
)

from ..common.digits_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.deformable_detr import model
from ..common.models.digits import dense_supervision as _dense_supervision
from ..common.models.digits import shrink_transformer

shrink_transformer(model)
model.backbone = L(TimmBackbone)(
    name="resnet18",
    out_features=["res3", "res4", "res5"],
    model_args=dict(layers=[1, 2, 2, 1], channels=[48, 96, 160, 192], stem_width=16, stem_type="deep"),
)
model.neck.in_channels = [96, 160, 192]
model.tokenizer.num_levels = 3
model.decoder.refine_boxes = True
model.decoder.look_forward_twice = True
model.decoder.heads.shared = False
model.decoder.heads.initial_size_logit = 0.0
model.query_source = L(EncoderProposals)(
    num_queries=50,
    embed_dim="${..tokenizer.embed_dim}",
    num_classes="${..decoder.heads.num_classes}",
    content="memory",
    rank_by="max",
    base_size=0.1,
)
model.criterion.supervisions = [
    L(Supervision)(
        group="main",
        assigner=L(HungarianMatcher)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)),
        losses=[L(VarifocalLoss)(weight=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
    ),
    _dense_supervision,
]

optimizer.lr = 1e-3
