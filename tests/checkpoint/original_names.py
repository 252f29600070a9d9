"""The names that weights of ours have in the authors' repositories: checkpoints to convert back."""

import re
from collections.abc import Sequence

import torch

# What names begin with here and there; the rest is the same. Heads of two decoder layers.
DEFORMABLE = [
    (r"backbone\.body\.", "backbone.0.body."),
    (r"neck\.levels\.(\d)\.", r"input_proj.\1."),
    (r"neck\.extra_levels\.0\.", r"input_proj.3."),
    (r"tokenizer\.level_embed", "transformer.level_embed"),
    (r"(encoder|decoder)\.layers\.(\d)\.ffn\.", r"transformer.\1.layers.\2."),
    (r"decoder\.layers\.(\d)\.norm1\.", r"transformer.decoder.layers.\1.norm2."),
    (r"decoder\.layers\.(\d)\.norm2\.", r"transformer.decoder.layers.\1.norm1."),
    (r"(encoder|decoder)\.layers\.", r"transformer.\1.layers."),
    (r"decoder\.heads\.class_heads\.", "class_embed."),
    (r"decoder\.heads\.box_heads\.", "transformer.decoder.bbox_embed."),
    (r"query_source\.class_head\.", "class_embed.2."),
    (r"query_source\.box_head\.", "transformer.decoder.bbox_embed.2."),
    (r"query_source\.token_proj\.", "transformer.enc_output."),
    (r"query_source\.token_norm\.", "transformer.enc_output_norm."),
    (r"query_source\.pos_proj\.", "transformer.pos_trans."),
    (r"query_source\.pos_norm\.", "transformer.pos_trans_norm."),
    (r"query_source\.reference_point\.", "transformer.reference_points."),
]
DINO = [
    (r"query_source\.class_head\.", "transformer.enc_out_class_embed."),
    (r"query_source\.box_head\.", "transformer.enc_out_bbox_embed."),
    (r"query_source\.query_embed\.", "transformer.tgt_embed."),
    (r"decoder\.norm\.", "transformer.decoder.norm."),
    (r"decoder\.position\.mlp\.", "transformer.decoder.ref_point_head."),
    (r"methods\.0\.label_embed\.", "label_enc."),
    *DEFORMABLE,
]
DETR = [
    (r"neck\.levels\.0\.0\.", "input_proj."),
    (r"(encoder|decoder)\.layers\.(\d)\.ffn\.", r"transformer.\1.layers.\2."),
    (r"decoder\.layers\.(\d)\.cross_attn\.", r"transformer.decoder.layers.\1.multihead_attn."),
    (r"(encoder|decoder)\.layers\.", r"transformer.\1.layers."),
    (r"decoder\.norm\.", "transformer.decoder.norm."),
    (r"decoder\.heads\.class_heads\.0\.", "class_embed."),
    (r"decoder\.heads\.box_heads\.0\.", "bbox_embed."),
    (r"query_source\.pos\.", "query_embed."),
]
CONDITIONAL_DETR = [
    (
        r"decoder\.layers\.(\d)\.(s|c)\w+_attn\.query_content_proj\.",
        r"transformer.decoder.layers.\1.\2a_qcontent_proj.",
    ),
    (r"decoder\.layers\.(\d)\.(s|c)\w+_attn\.query_pos_proj\.", r"transformer.decoder.layers.\1.\2a_qpos_proj."),
    (r"decoder\.layers\.(\d)\.(s|c)\w+_attn\.query_sine_proj\.", r"transformer.decoder.layers.\1.\2a_qpos_sine_proj."),
    (r"decoder\.layers\.(\d)\.(s|c)\w+_attn\.key_content_proj\.", r"transformer.decoder.layers.\1.\2a_kcontent_proj."),
    (r"decoder\.layers\.(\d)\.(s|c)\w+_attn\.key_pos_proj\.", r"transformer.decoder.layers.\1.\2a_kpos_proj."),
    (r"decoder\.layers\.(\d)\.(s|c)\w+_attn\.value_proj\.", r"transformer.decoder.layers.\1.\2a_v_proj."),
    (r"decoder\.layers\.(\d)\.cross_attn\.", r"transformer.decoder.layers.\1.cross_attn."),
    (r"query_source\.reference_point\.", "transformer.decoder.ref_point_head."),
    (r"decoder\.position\.scale\.mlp\.", "transformer.decoder.query_scale."),
    *DETR,
]
DAB_DETR = [
    (r"encoder\.pos_scale\.", "transformer.encoder.query_scale."),
    (r"decoder\.position\.mlp\.", "transformer.decoder.ref_point_head."),
    (r"decoder\.position\.size\.", "transformer.decoder.ref_anchor_head."),
    (r"query_source\.label_embedding\.embed\.", "label_enc."),  # DN-DETR
    (r"query_source\.patterns\.", "transformer.patterns."),
    *CONDITIONAL_DETR,
]
# Tensors of which each holds two of ours side by side.
JOINED = {
    "query_embed.weight": ("query_source.pos.weight", "query_source.content.weight"),
    "refpoint_embed.weight": ("query_source.centres", "query_source.sizes"),
}


def as_original(
    weights: dict[str, torch.Tensor], names: Sequence[tuple[str, str]] = DEFORMABLE
) -> dict[str, torch.Tensor]:
    """A state dict of ours under the keys of the authors' repository."""
    weights = dict(weights)
    renamed = {}
    for key, halves in JOINED.items():
        if all(half in weights for half in halves):
            renamed[key] = torch.cat([weights.pop(half) for half in halves], dim=1)
    for name, tensor in weights.items():
        pattern, key = next((p, k) for p, k in names if re.match(p, name))
        renamed[re.sub(f"^{pattern}", key, name)] = tensor
    return renamed
