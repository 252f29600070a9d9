"""Mr. DETR on Deformable-DETR++: ResNet-50, 300 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import FocalLoss, GIoULoss, HungarianMatcher, L1Loss, MatchingCost, Supervision
from detrx.projects.mr_detr import AnchorMatcher, MrDETR

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

_losses = [L(FocalLoss)(weight=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]
model.criterion.supervisions = [
    L(Supervision)(
        group="main",
        assigner=L(HungarianMatcher)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)),
        losses=_losses,
    ),
    L(Supervision)(
        group="encoder",
        assigner=L(AnchorMatcher)(cost=L(MatchingCost)(class_weight=0.0, l1_weight=5.0, giou_weight=2.0)),
        losses=_losses,
        suffix="_enc",
        class_agnostic=True,
        weight=3.0,
    ),
]
model.postprocess.num_detections = 300
model.methods = [
    L(MrDETR)(
        num_instruction_tokens=10,
        top_k=6,
        alpha=0.3,
        threshold=0.4,
        routes=["instruction", "ffn"],
        initial_size_logit=-2.0,
    )
]
