"""Deformable DETR (arXiv 2010.04159), one-stage, without a backbone.

Sizes are set in one place each and referred to from there:
    model.tokenizer.{embed_dim, num_levels}
    model.encoder.layer.self_attn.{num_heads, num_points}, model.encoder.layer.ffn.hidden_dim
    model.encoder.layer.dropout
    model.encoder.num_layers, model.decoder.num_layers
    model.decoder.heads.num_classes, model.query_source.num_queries
"""

from detrx.d2.config import LazyCall as L
from detrx.layers import FFN, MultiheadAttention, MultiScaleDeformableAttention, SinePositionEmbedding
from detrx.modeling import (
    ChannelMapper,
    Criterion,
    Decoder,
    DeformableCrossAttention,
    DeformableEncoder,
    DeformableEncoderLayer,
    DetectionTransformer,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    L1Loss,
    LearnedQueries,
    MatchingCost,
    PredictionHeads,
    Supervision,
    Tokenizer,
    TopDetections,
)

from .decoder_layer import decoder_layer


def supervision(**where):
    """Hungarian matching with focal, L1 and GIoU losses, of a group of queries or of the encoder's proposals."""
    return L(Supervision)(
        assigner=L(HungarianMatcher)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)),
        losses=[L(FocalLoss)(weight=1.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
        **where,
    )


model = L(DetectionTransformer)(
    backbone=None,
    neck=L(ChannelMapper)(
        in_features=["res3", "res4", "res5"],
        in_channels=[512, 1024, 2048],
        out_channels="${..tokenizer.embed_dim}",
        num_levels="${..tokenizer.num_levels}",
    ),
    tokenizer=L(Tokenizer)(
        position_embedding=L(SinePositionEmbedding)(num_feats=128, temperature=10000.0, offset=-0.5),
        embed_dim=256,
        num_levels=4,
    ),
    encoder=L(DeformableEncoder)(
        layer=L(DeformableEncoderLayer)(
            self_attn=L(MultiScaleDeformableAttention)(
                embed_dim="${..embed_dim}",
                num_heads=8,
                num_levels="${....tokenizer.num_levels}",
                num_points=4,
            ),
            ffn=L(FFN)(embed_dim="${..embed_dim}", hidden_dim=1024, dropout="${..dropout}"),
            embed_dim="${...tokenizer.embed_dim}",
            dropout=0.1,
        ),
        num_layers=6,
    ),
    query_source=L(LearnedQueries)(num_queries=300, embed_dim="${..tokenizer.embed_dim}"),
    decoder=L(Decoder)(
        layer=decoder_layer(
            cross_attn=L(DeformableCrossAttention)(
                embed_dim="${..embed_dim}",
                num_heads="${....encoder.layer.self_attn.num_heads}",
                num_levels="${....tokenizer.num_levels}",
                num_points="${....encoder.layer.self_attn.num_points}",
            )
        ),
        num_layers=6,
        heads=L(PredictionHeads)(
            embed_dim="${...tokenizer.embed_dim}",
            num_classes=80,
            num_layers="${..num_layers}",
            shared=True,
            initial_size_logit=-2.0,
        ),
        refine_boxes=False,
        look_forward_twice=False,
        inverse_sigmoid_eps=1e-3,
    ),
    criterion=L(Criterion)(supervisions=[supervision(group="main")]),
    postprocess=L(TopDetections)(num_detections=100, score_threshold=0.0),
    methods=[],
)
