"""The small detectors for digits: what they have in common."""

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

_backbone = L(TimmBackbone)(
    name="resnet18",
    out_features=["res4"],
    model_args=dict(layers=[1, 2, 2, 1], channels=[48, 96, 160, 192], stem_width=16, stem_type="deep", output_stride=8),
)

# Without a dense supervision of the encoder, such small models hardly learn where digits are.
dense_supervision = L(Supervision)(
    group="encoder",
    assigner=L(TopKAssigner)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0), k=6),
    losses=[L(VarifocalLoss)(weight=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
    suffix="_enc",
    weight=0.25,
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
    supervision=dense_supervision,
)


def shrink_transformer(model):
    """Give a detector the sizes for digits, all but those of its backbone."""
    model.tokenizer.embed_dim = 128
    model.tokenizer.position_embedding.num_feats = 64
    model.encoder.layer.self_attn.num_heads = 4
    model.encoder.layer.ffn.hidden_dim = 256
    model.encoder.layer.dropout = 0.0
    model.encoder.num_layers = 1
    model.decoder.num_layers = 3
    model.decoder.heads.num_classes = 10
    model.query_source.num_queries = 50


def shrink(model):
    """Give a single-scale detector the sizes for digits, on a map of stride 8, and supervise its encoder, too."""
    shrink_transformer(model)
    model.backbone = _backbone
    model.neck.in_features = ["res4"]
    model.neck.in_channels = [160]
    model.postprocess.num_detections = 50
    model.methods.append(encoder_supervision)


def use_teacher_backbone(model):
    """After `shrink`: a wide and deeper backbone, for the teacher of a distillation."""
    model.backbone = L(TimmBackbone)(
        name="resnet18",
        out_features=["res4"],
        model_args=dict(
            layers=[1, 2, 2, 1], channels=[64, 128, 192, 192], stem_width=32, stem_type="deep", output_stride=8
        ),
    )
    model.neck.in_features = ["res4"]
    model.neck.in_channels = [192]


def use_student_backbone(model):
    """After `shrink`: a thin backbone that ends at stride 8, for the student of a distillation."""
    model.backbone = L(TimmBackbone)(
        name="resnet18",
        out_features=["res3"],
        model_args=dict(layers=[1, 2, 1, 1], channels=[32, 64, 64, 64], stem_width=16, stem_type="deep"),
    )
    model.neck.in_features = ["res3"]
    model.neck.in_channels = [64]
