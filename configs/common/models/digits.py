"""What the single-scale detectors share in their digits configs."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import (
    EncoderProposals,
    EncoderSupervision,
    GIoULoss,
    L1Loss,
    MatchingCost,
    Supervision,
    TimmBackbone,
    TopKAssigner,
    VarifocalLoss,
)

backbone = L(TimmBackbone)(
    name="resnet18",
    out_features=["res4"],
    model_args=dict(layers=[1, 2, 2, 1], channels=[48, 96, 160, 192], stem_width=16, stem_type="deep", output_stride=8),
)

encoder_supervision = L(EncoderSupervision)(
    proposals=L(EncoderProposals)(
        num_queries=1,
        embed_dim="${....tokenizer.embed_dim}",
        num_classes="${....decoder.heads.num_classes}",
        content="memory",
        embed_position=False,
        base_size=0.2,
    ),
    supervision=L(Supervision)(
        group="encoder",
        assigner=L(TopKAssigner)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0), k=6),
        losses=[L(VarifocalLoss)(weight=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
        suffix="_enc",
        weight=0.25,
    ),
)
