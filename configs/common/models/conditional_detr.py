"""Conditional DETR (arXiv 2108.06152), without a backbone. Sizes are set as in `detr.py`."""

from detrx.d2.config import LazyCall as L
from detrx.layers import ConditionalSelfAttention
from detrx.modeling import (
    ConditionalCrossAttention,
    ConditionalPosition,
    DecoderLayer,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    L1Loss,
    MatchingCost,
    PositionQueries,
    Supervision,
    TopDetections,
)

from .detr import model

model.query_source = L(PositionQueries)(num_queries=300, embed_dim="${..tokenizer.embed_dim}", reference_points=True)
model.decoder.layer.self_attn = L(ConditionalSelfAttention)(
    embed_dim="${..embed_dim}",
    num_heads="${....encoder.layer.self_attn.num_heads}",
    dropout="${..dropout}",
)
model.decoder.layer.cross_attn = L(ConditionalCrossAttention)(
    embed_dim="${..embed_dim}",
    num_heads="${....encoder.layer.self_attn.num_heads}",
    dropout="${..dropout}",
    add_pos=False,
)
model.decoder.first_layer = L(DecoderLayer)(
    self_attn="${..layer.self_attn}",
    cross_attn=L(ConditionalCrossAttention)(
        embed_dim="${..embed_dim}",
        num_heads="${....encoder.layer.self_attn.num_heads}",
        dropout="${..dropout}",
        add_pos=True,
    ),
    ffn="${..layer.ffn}",
    embed_dim="${..layer.embed_dim}",
    dropout="${..layer.dropout}",
)
model.decoder.position = L(ConditionalPosition)(embed_dim="${...tokenizer.embed_dim}")
model.decoder.heads.no_object = False
model.criterion.supervisions = [
    L(Supervision)(
        group="main",
        assigner=L(HungarianMatcher)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)),
        losses=[L(FocalLoss)(weight=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
    ),
]
model.postprocess = L(TopDetections)(num_detections=100, score_threshold=0.0)
