"""Checkpoints of Hugging Face transformers, releases 4 and 5."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from .common import backbone, heads, input_projections, position_networks, query_projections
from .rules import Rename, Rule, Split, pack

__all__ = ["matches", "rules", "settings"]

_ENCODER = r"model\.(encoder)\.layers\.(\d+)"
_DECODER = r"model\.(decoder)\.layers\.(\d+)"
_LAYER = r"model\.(encoder|decoder)\.layers\.(\d+)"


def matches(keys: Collection[str]) -> bool:
    return any(key.startswith("model.encoder.layers.0.self_attn_layer_norm.") for key in keys)


def settings(source: Mapping[str, Tensor]) -> dict[str, float]:
    return {"decoder.inverse_sigmoid_eps": 1e-5}


def rules(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    return [
        *backbone(source, model, r"model\.backbone\.(?:conv_encoder\.)?model\."),
        *input_projections(model, r"model\.input_proj"),
        *(_single_scale(source) if "model.input_projection.weight" in source else []),
        *_layers(),
        *_queries(),
        *heads(source, model, r"(?:model\.decoder\.)?class_embed", r"(?:model\.decoder\.)?bbox_embed"),
    ]


def _single_scale(source: Mapping[str, Tensor]) -> list[Rule]:
    """DETR, Conditional DETR, DAB-DETR: one map, heads that all layers share."""
    anchors = "model.query_refpoint_embeddings.weight" in source
    conditional = "model.decoder.query_scale.layers.0.weight" in source
    return [
        *(_conditional_attention() if conditional else _dense_cross_attention()),
        Rename(r"model\.input_projection\.(.+)", r"neck.levels.0.0.\1"),
        Rename(r"model\.query_position_embeddings\.weight", "query_source.pos.weight"),
        Split(r"model\.query_refpoint_embeddings\.weight", ["query_source.centres", "query_source.sizes"], dim=1),
        *position_networks("model", from_references=anchors),
        Rename(_LAYER + r"\.(?:mlp\.)?activation_fn\.(.+)", r"\1.layers.\2.ffn.activation.\3"),
        Rename(_DECODER + r"\.mlp\.final_layer_norm\.(.+)", r"\1.layers.\2.norm3.\3"),
        Rename(r"model\.decoder\.layernorm\.(.+)", r"decoder.norm.\1"),
        Rename(r"(?:class_labels_classifier|class_embed)\.(weight|bias)", r"decoder.heads.class_heads.0.\1"),
        Rename(r"(?:bbox_predictor|model\.decoder\.bbox_embed)\.layers\.(.+)", r"decoder.heads.box_heads.0.layers.\1"),
    ]


def _dense_cross_attention() -> list[Rule]:
    """The decoder's cross-attention in DETR."""
    packed = []
    for kind in ("weight", "bias"):
        projections = [rf"{_DECODER}\.encoder_attn\.{x}_proj\.{kind}" for x in "qkv"]
        packed += pack(projections, rf"\1.layers.\2.cross_attn.in_proj_{kind}")
    return [*packed, Rename(_DECODER + r"\.encoder_attn\.o(?:ut)?_proj\.(.+)", r"\1.layers.\2.cross_attn.out_proj.\3")]


def _conditional_attention() -> list[Rule]:
    """The decoder's attentions in Conditional DETR (releases 4 and 5) and DAB-DETR."""
    rules: list[Rule] = []
    for ours, theirs, norm in (
        ("self_attn", r"(?:sa_|self_attn\.|self_attn\.self_attn_)", "norm1"),
        ("cross_attn", r"(?:ca_|encoder_attn\.|cross_attn\.cross_attn_)", "norm2"),
    ):
        for short, word in (("q", "query"), ("k", "key")):
            rules += [
                Rename(
                    rf"{_DECODER}\.{theirs}(?:{short}|{word})_?{kind}_proj\.(.+)",
                    rf"\1.layers.\2.{ours}.{word}_{kind}_proj.\3",
                )
                for kind in ("content", "pos")
            ]
        rules += [
            Rename(rf"{_DECODER}\.{theirs}(?:v|value)_proj\.(.+)", rf"\1.layers.\2.{ours}.value_proj.\3"),
            Rename(rf"{_DECODER}\.{theirs}layer_norm\.(.+)", rf"\1.layers.\2.{norm}.\3"),
        ]
    output = r"(?:{0}\.{0}\.output_proj|{1}\.o(?:ut)?_proj)\.(.+)"
    return [
        *rules,
        Rename(
            _DECODER + r"\.(?:ca_|encoder_attn\.|cross_attn\.cross_attn_)(?:q|query)_?pos_sine_proj\.(.+)",
            r"\1.layers.\2.cross_attn.query_sine_proj.\3",
        ),
        Rename(_DECODER + r"\." + output.format("self_attn", "self_attn"), r"\1.layers.\2.self_attn.out_proj.\3"),
        Rename(_DECODER + r"\." + output.format("cross_attn", "encoder_attn"), r"\1.layers.\2.cross_attn.out_proj.\3"),
    ]


def _layers() -> list[Rule]:
    packed = []
    for kind in ("weight", "bias"):
        projections = [rf"{_LAYER}\.self_attn\.{x}_proj\.{kind}" for x in "qkv"]
        packed += pack(projections, rf"\1.layers.\2.self_attn.in_proj_{kind}")
    return [
        *packed,
        Rename(_LAYER + r"\.self_attn\.o(?:ut)?_proj\.(.+)", r"\1.layers.\2.self_attn.out_proj.\3"),
        Rename(_LAYER + r"\.self_attn\.(.+)", r"\1.layers.\2.self_attn.\3"),
        Rename(_DECODER + r"\.encoder_attn\.(.+)", r"\1.layers.\2.cross_attn.\3"),
        Rename(_LAYER + r"\.self_attn_layer_norm\.(.+)", r"\1.layers.\2.norm1.\3"),
        Rename(_DECODER + r"\.encoder_attn_layer_norm\.(.+)", r"\1.layers.\2.norm2.\3"),
        Rename(_ENCODER + r"\.final_layer_norm\.(.+)", r"\1.layers.\2.norm2.\3"),
        Rename(_DECODER + r"\.final_layer_norm\.(.+)", r"\1.layers.\2.norm3.\3"),
        Rename(_LAYER + r"\.(?:mlp\.)?fc([12])\.(.+)", r"\1.layers.\2.ffn.linear\3.\4"),
    ]


def _queries() -> list[Rule]:
    return [
        Rename(r"model\.level_embed", "tokenizer.level_embed"),
        Split(
            r"model\.query_position_embeddings\.weight",
            ["query_source.pos.weight", "query_source.content.weight"],
            dim=1,
        ),
        *query_projections("model"),
    ]
