"""DETR (arXiv 2005.12872), without a backbone.

Sizes are set in one place each and referred to from there:
    model.tokenizer.embed_dim, model.encoder.layer.self_attn.num_heads, model.encoder.layer.ffn.hidden_dim
    model.encoder.layer.dropout
    model.encoder.num_layers, model.decoder.num_layers
    model.decoder.heads.num_classes, model.query_source.num_queries
"""

from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.layers import FFN, MultiheadAttention, SinePositionEmbedding
from detrx.modeling import (
    ChannelMapper,
    Criterion,
    CrossEntropyLoss,
    Decoder,
    DenseCrossAttention,
    DetectionTransformer,
    GIoULoss,
    HungarianMatcher,
    L1Loss,
    PositionQueries,
    PredictionHeads,
    SoftmaxMatchingCost,
    Supervision,
    Tokenizer,
    TopQueries,
    TransformerEncoder,
    TransformerEncoderLayer,
)

from .decoder_layer import decoder_layer

model = L(DetectionTransformer)(
    backbone=None,
    neck=L(ChannelMapper)(
        in_features=["res5"],
        in_channels=[2048],
        out_channels="${..tokenizer.embed_dim}",
        num_levels=1,
        num_groups=None,
    ),
    tokenizer=L(Tokenizer)(
        position_embedding=L(SinePositionEmbedding)(num_feats=128, temperature=10000.0, offset=0.0),
        embed_dim=256,
        num_levels=1,
        level_embedding=False,
    ),
    encoder=L(TransformerEncoder)(
        layer=L(TransformerEncoderLayer)(
            self_attn=L(MultiheadAttention)(embed_dim="${..embed_dim}", num_heads=8, dropout="${..dropout}"),
            ffn=L(FFN)(embed_dim="${..embed_dim}", hidden_dim=2048, dropout="${..dropout}"),
            embed_dim="${...tokenizer.embed_dim}",
            dropout=0.1,
        ),
        num_layers=6,
    ),
    query_source=L(PositionQueries)(num_queries=100, embed_dim="${..tokenizer.embed_dim}"),
    decoder=L(Decoder)(
        layer=decoder_layer(
            cross_attn=L(DenseCrossAttention)(
                embed_dim="${..embed_dim}",
                num_heads="${....encoder.layer.self_attn.num_heads}",
                dropout="${..dropout}",
            )
        ),
        num_layers=6,
        heads=L(PredictionHeads)(
            embed_dim="${...tokenizer.embed_dim}",
            num_classes=80,
            num_layers="${..num_layers}",
            shared=True,
            no_object=True,
        ),
        norm=L(nn.LayerNorm)(normalized_shape="${...tokenizer.embed_dim}"),
        refine_boxes=False,
    ),
    criterion=L(Criterion)(
        supervisions=[
            L(Supervision)(
                group="main",
                assigner=L(HungarianMatcher)(
                    cost=L(SoftmaxMatchingCost)(class_weight=1.0, l1_weight=5.0, giou_weight=2.0)
                ),
                losses=[
                    L(CrossEntropyLoss)(weight=1.0, no_object_weight=0.1),
                    L(L1Loss)(weight=5.0),
                    L(GIoULoss)(weight=2.0),
                ],
            ),
        ],
    ),
    postprocess=L(TopQueries)(num_detections=100, score_threshold=0.0),
    methods=[],
)
