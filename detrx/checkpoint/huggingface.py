"""Checkpoints of Hugging Face transformers, by the names of its releases 4 and 5."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from .common import backbone, heads, input_projections
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
        *_layers(),
        *_queries(),
        *heads(source, model, r"(?:model\.decoder\.)?class_embed", r"(?:model\.decoder\.)?bbox_embed"),
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
        Rename(r"model\.reference_points\.(.+)", r"query_source.reference_point.\1"),
        Rename(r"model\.enc_output\.(.+)", r"query_source.token_proj.\1"),
        Rename(r"model\.enc_output_norm\.(.+)", r"query_source.token_norm.\1"),
        Rename(r"model\.pos_trans\.(.+)", r"query_source.pos_proj.\1"),
        Rename(r"model\.pos_trans_norm\.(.+)", r"query_source.pos_norm.\1"),
    ]
