"""Two-stage Deformable DETR: the encoder's best 300 proposals become the queries."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import EncoderProposals, FocalLoss, GIoULoss, HungarianMatcher, L1Loss, MatchingCost, Supervision

from .deformable_detr_refine_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source = L(EncoderProposals)(
    num_queries=300,
    embed_dim="${..tokenizer.embed_dim}",
    num_classes="${..decoder.heads.num_classes}",
    content="position",
    rank_by="first_class",
)
model.decoder.heads.initial_size_logit = 0.0
model.criterion.supervisions.append(
    L(Supervision)(
        group="encoder",
        assigner=L(HungarianMatcher)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)),
        losses=[L(FocalLoss)(weight=1.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
        suffix="_enc",
        class_agnostic=True,
    )
)
