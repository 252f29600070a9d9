"""Checkpoints of detrex and of Detectron2 projects built on it."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from .common import backbone, deformable_queries, denoising, heads, position_networks
from .rules import Ignore, Rename, Rule, Split

__all__ = ["matches", "rules", "settings"]

_LAYER = r"transformer\.(encoder|decoder)\.layers\.(\d+)"


def matches(keys: Collection[str]) -> bool:
    return any(key.startswith("transformer.encoder.layers.0.attentions.") for key in keys)


def settings(source: Mapping[str, Tensor]) -> dict[str, float]:
    return {"decoder.inverse_sigmoid_eps": 1e-3}


def rules(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    return [
        *backbone(source, model, r"backbone\."),
        Ignore(r"(criterion\..*)", "weights of the losses, which are in the config"),
        *_neck(),
        *_multi_route(source, model),
        *_layers(),
        *deformable_queries(source, model, r"query_embedding\.weight"),
        *_single_scale(source),
        *denoising(model, r"label_enc"),
        *heads(source, model, r"(?:transformer\.decoder\.)?class_embed", r"(?:transformer\.decoder\.)?bbox_embed"),
    ]


def _neck() -> list[Rule]:
    return [
        Rename(r"neck\.convs\.(\d+)\.conv\.(.+)", r"neck.levels.\1.0.\2"),
        Rename(r"neck\.convs\.(\d+)\.norm\.(.+)", r"neck.levels.\1.1.\2"),
        Rename(r"neck\.extra_convs\.(\d+)\.conv\.(.+)", r"neck.extra_levels.\1.0.\2"),
        Rename(r"neck\.extra_convs\.(\d+)\.norm\.(.+)", r"neck.extra_levels.\1.1.\2"),
        Rename(r"transformer\.level_embeds", r"tokenizer.level_embed"),
    ]


def _layers() -> list[Rule]:
    return [
        Rename(_LAYER + r"\.ffns\.0\.layers\.0\.0\.(.+)", r"\1.layers.\2.ffn.linear1.\3"),
        Rename(_LAYER + r"\.ffns\.0\.layers\.1\.(.+)", r"\1.layers.\2.ffn.linear2.\3"),
        Rename(_LAYER + r"\.ffns\.0\.(?:activation|layers\.0\.1)\.(.+)", r"\1.layers.\2.ffn.activation.\3"),
        Rename(_LAYER + r"\.norms\.0\.(.+)", r"\1.layers.\2.norm1.\3"),
        Rename(_LAYER + r"\.norms\.1\.(.+)", r"\1.layers.\2.norm2.\3"),
        Rename(_LAYER + r"\.norms\.2\.(.+)", r"\1.layers.\2.norm3.\3"),
        Rename(_LAYER + r"\.attentions\.0\.(?:attn\.)?(.+)", r"\1.layers.\2.self_attn.\3"),
        Rename(_LAYER + r"\.attentions\.1\.query_pos_sine_proj\.(.+)", r"\1.layers.\2.cross_attn.query_sine_proj.\3"),
        Rename(_LAYER + r"\.attentions\.1\.(?:attn\.)?(.+)", r"\1.layers.\2.cross_attn.\3"),
        Rename(r"transformer\.decoder\.(?:post_norm_layer|norm)\.(.+)", r"decoder.norm.\1"),
    ]


def _multi_route(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    """Mr. DETR: components of the auxiliary routes, and those of the main route that have other names than usual."""
    if not any(key.endswith(".norm_o2o.weight") for key in source):
        return []
    decoder = r"transformer\.decoder\.layers\.(\d+)"
    tokens = decoder + r"\.attentions\.0\.instruction_o2m"
    norm, ffn = decoder + r"\.attentions\.0\.norm_o2m", decoder + r"\.ffns\.0\.layers"
    heads = r"transformer\.decoder\.(?:class_embed_o2m_encoder|bbox_embed_enc_o2m)"
    places = {
        name: f"methods.{index}.routes.{route}"
        for index, method in model.get_submodule("methods").named_children()
        for route, name in enumerate(getattr(method, "route_names", ()))
    }
    instruction, own_ffn = places.get("instruction"), places.get("ffn")
    unused = "for an auxiliary route, which the model does without"
    return [
        Rename(decoder + r"\.attentions\.0\.norm_o2o\.(.+)", r"decoder.layers.\1.norm1.\2"),
        Rename(decoder + r"\.norms\.0\.(.+)", r"decoder.layers.\1.norm2.\2"),
        Rename(decoder + r"\.norms\.1\.(.+)", r"decoder.layers.\1.norm3.\2"),
        Rename(ffn + r"\.0\.linear\.linear\.(.+)", r"decoder.layers.\1.ffn.linear1.\2"),
        Rename(ffn + r"\.1\.linear\.(.+)", r"decoder.layers.\1.ffn.linear2.\2"),
        *(
            [
                Rename(tokens + r"\.weight", rf"{instruction}.own.tokens.\1.content"),
                Rename(tokens + r"_pos\.weight", rf"{instruction}.own.tokens.\1.pos"),
                Rename(norm + r"\.(.+)", rf"{instruction}.own.norm1.\1.\2"),
                Rename(r"transformer\.decoder\.class_embed_o2m_encoder\.(.+)", rf"{instruction}.class_head.\1"),
                Rename(r"transformer\.decoder\.bbox_embed_enc_o2m\.(.+)", rf"{instruction}.box_head.\1"),
            ]
            if instruction
            else [Ignore(rf"(?:{tokens}(?:_pos)?|{norm}|{heads})\..+", unused)]
        ),
        *(
            [
                Rename(ffn + r"\.0\.linear\.linear_sep\.(.+)", rf"{own_ffn}.own.ffn.\1.linear1.\2"),
                Rename(ffn + r"\.1\.linear_sep\.(.+)", rf"{own_ffn}.own.ffn.\1.linear2.\2"),
            ]
            if own_ffn
            else [Ignore(ffn + r"\.\d\..*linear_sep\..+", unused)]
        ),
    ]


def _single_scale(source: Mapping[str, Tensor]) -> list[Rule]:
    """DETR, Conditional DETR, DAB-DETR, DN-DETR: one map, heads that all layers share."""
    return [
        Rename(r"input_proj\.(weight|bias)", r"neck.levels.0.0.\1"),
        Rename(r"query_embed\.weight", "query_source.pos.weight"),
        Split(r"anchor_box_embed\.weight", ["query_source.centres", "query_source.sizes"], dim=1),
        Rename(r"denoising_generator\.label_encoder\.weight", "query_source.label_embedding.embed.weight"),
        *position_networks("transformer", from_references="query_embed.weight" not in source),
        Rename(r"class_embed\.(weight|bias)", r"decoder.heads.class_heads.0.\1"),
        Rename(r"(?:transformer\.decoder\.)?bbox_embed\.layers\.(.+)", r"decoder.heads.box_heads.0.layers.\1"),
    ]
