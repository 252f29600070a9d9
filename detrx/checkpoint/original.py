"""Checkpoints of the authors' repositories: DETR, Conditional DETR, DAB-DETR, DN-DETR, Deformable-DETR,
H-Deformable-DETR and DINO."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from .common import backbone, deformable_queries, denoising, heads, input_projections, position_networks
from .rules import Rename, Rule, Split

__all__ = ["matches", "rules", "settings"]

_ENCODER = r"transformer\.(encoder)\.layers\.(\d+)"
_DECODER = r"transformer\.(decoder)\.layers\.(\d+)"
_LAYER = r"transformer\.(encoder|decoder)\.layers\.(\d+)"
_PROJECTIONS = {
    "qcontent": "query_content",
    "qpos": "query_pos",
    "qpos_sine": "query_sine",
    "kcontent": "key_content",
    "kpos": "key_pos",
    "v": "value",
}


def matches(keys: Collection[str]) -> bool:
    return any(key.startswith("transformer.encoder.layers.0.linear1.") for key in keys)


def settings(source: Mapping[str, Tensor]) -> dict[str, float]:
    dino, dab = "transformer.enc_out_class_embed.weight" in source, "refpoint_embed.weight" in source
    found = {
        "tokenizer.position_embedding.temperature": 20 if dino or dab else 10000,
        "tokenizer.position_embedding.offset": -0.5 if _is_deformable(source) and not dino else 0,
    }
    if any("ref_point_head" in key or "reference_points" in key or "pos_trans" in key for key in source):
        found["decoder.inverse_sigmoid_eps"] = 1e-3 if dino or dab else 1e-5
    return found


def rules(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    deformable = _is_deformable(source)
    return [
        *backbone(source, model, r"backbone\.0\."),
        *_layers(),
        *(_deformable(source, model) if deformable else _single_scale(source)),
        *heads(source, model, r"(?:transformer\.decoder\.)?class_embed", r"(?:transformer\.decoder\.)?bbox_embed"),
    ]


def _is_deformable(source: Mapping[str, Tensor]) -> bool:
    return "transformer.encoder.layers.0.self_attn.sampling_offsets.weight" in source


def _layers() -> list[Rule]:
    return [
        Rename(_LAYER + r"\.linear([12])\.(.+)", r"\1.layers.\2.ffn.linear\3.\4"),
        Rename(_LAYER + r"\.activation\.(.+)", r"\1.layers.\2.ffn.activation.\3"),
        Rename(_LAYER + r"\.self_attn\.(.+)", r"\1.layers.\2.self_attn.\3"),
        Rename(_DECODER + r"\.(?:cross_attn|multihead_attn)\.(.+)", r"\1.layers.\2.cross_attn.\3"),
        Rename(_ENCODER + r"\.norm([12])\.(.+)", r"\1.layers.\2.norm\3.\4"),
        Rename(r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
    ]


def _deformable(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    return [
        *input_projections(model, r"input_proj"),
        # Norms are numbered in the order of the constructor, not of the forward pass.
        Rename(_DECODER + r"\.norm1\.(.+)", r"\1.layers.\2.norm2.\3"),
        Rename(_DECODER + r"\.norm2\.(.+)", r"\1.layers.\2.norm1.\3"),
        Rename(_DECODER + r"\.norm3\.(.+)", r"\1.layers.\2.norm3.\3"),
        Rename(r"transformer\.level_embed", "tokenizer.level_embed"),
        *deformable_queries(source, model, r"query_embed\.weight"),
        Rename(r"transformer\.enc_out_class_embed\.(.+)", r"query_source.class_head.\1"),
        Rename(r"transformer\.enc_out_bbox_embed\.(.+)", r"query_source.box_head.\1"),
        Rename(r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.position.mlp.\1"),
        *denoising(model, r"label_enc"),
    ]


def _single_scale(source: Mapping[str, Tensor]) -> list[Rule]:
    projections = [
        Rename(rf"{_DECODER}\.{block}_{theirs}_proj\.(.+)", rf"\1.layers.\2.{attention}.{ours}_proj.\3")
        for block, attention in (("sa", "self_attn"), ("ca", "cross_attn"))
        for theirs, ours in _PROJECTIONS.items()
    ]
    return [
        *projections,
        Rename(_DECODER + r"\.norm([123])\.(.+)", r"\1.layers.\2.norm\3.\4"),
        Rename(r"input_proj\.(.+)", r"neck.levels.0.0.\1"),
        Rename(r"query_embed\.weight", "query_source.pos.weight"),
        Split(r"refpoint_embed\.weight", ["query_source.centres", "query_source.sizes"], dim=1),
        Rename(r"label_enc\.weight", "query_source.label_embedding.embed.weight"),
        *position_networks("transformer", from_references="query_embed.weight" not in source),
        Rename(r"class_embed\.(weight|bias)", r"decoder.heads.class_heads.0.\1"),
        Rename(r"(?:transformer\.decoder\.)?bbox_embed\.layers\.(.+)", r"decoder.heads.box_heads.0.layers.\1"),
    ]
