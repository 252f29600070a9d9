"""Checkpoints of the authors' repositories: Deformable-DETR, and DINO, which is built on it."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from .common import backbone, denoising, heads, input_projections
from .rules import Rename, Rule, Split

__all__ = ["matches", "rules", "settings"]

_ENCODER = r"transformer\.(encoder)\.layers\.(\d+)"
_DECODER = r"transformer\.(decoder)\.layers\.(\d+)"
_LAYER = r"transformer\.(encoder|decoder)\.layers\.(\d+)"


def matches(keys: Collection[str]) -> bool:
    return any(key.startswith("transformer.encoder.layers.0.linear1.") for key in keys)


def settings(source: Mapping[str, Tensor]) -> dict[str, float]:
    positions = {"tokenizer.position_embedding.temperature": 10000, "tokenizer.position_embedding.offset": -0.5}
    if "transformer.enc_out_class_embed.weight" in source:  # DINO
        positions = {"tokenizer.position_embedding.temperature": 20, "tokenizer.position_embedding.offset": 0}
    return {"decoder.inverse_sigmoid_eps": 1e-5, **positions}


def rules(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    return [
        *backbone(source, model, r"backbone\.0\."),
        *input_projections(model, r"input_proj"),
        *_deformable_layers(),
        *_queries(),
        *denoising(model, r"label_enc"),
        *heads(source, model, r"(?:transformer\.decoder\.)?class_embed", r"(?:transformer\.decoder\.)?bbox_embed"),
    ]


def _deformable_layers() -> list[Rule]:
    return [
        Rename(_LAYER + r"\.linear([12])\.(.+)", r"\1.layers.\2.ffn.linear\3.\4"),
        Rename(_LAYER + r"\.self_attn\.(.+)", r"\1.layers.\2.self_attn.\3"),
        Rename(_DECODER + r"\.cross_attn\.(.+)", r"\1.layers.\2.cross_attn.\3"),
        Rename(_ENCODER + r"\.norm([12])\.(.+)", r"\1.layers.\2.norm\3.\4"),
        # Numbered in the order of the constructor, not in that of the forward pass.
        Rename(_DECODER + r"\.norm1\.(.+)", r"\1.layers.\2.norm2.\3"),
        Rename(_DECODER + r"\.norm2\.(.+)", r"\1.layers.\2.norm1.\3"),
        Rename(_DECODER + r"\.norm3\.(.+)", r"\1.layers.\2.norm3.\3"),
        Rename(r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
        Rename(r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.position.mlp.\1"),
    ]


def _queries() -> list[Rule]:
    return [
        Rename(r"transformer\.level_embed", "tokenizer.level_embed"),
        Split(r"query_embed\.weight", ["query_source.pos.weight", "query_source.content.weight"], dim=1),
        Rename(r"transformer\.tgt_embed\.weight", "query_source.query_embed.weight"),
        Rename(r"transformer\.reference_points\.(.+)", r"query_source.reference_point.\1"),
        Rename(r"transformer\.enc_output\.(.+)", r"query_source.token_proj.\1"),
        Rename(r"transformer\.enc_output_norm\.(.+)", r"query_source.token_norm.\1"),
        Rename(r"transformer\.pos_trans\.(.+)", r"query_source.pos_proj.\1"),
        Rename(r"transformer\.pos_trans_norm\.(.+)", r"query_source.pos_norm.\1"),
        Rename(r"transformer\.enc_out_class_embed\.(.+)", r"query_source.class_head.\1"),
        Rename(r"transformer\.enc_out_bbox_embed\.(.+)", r"query_source.box_head.\1"),
    ]
