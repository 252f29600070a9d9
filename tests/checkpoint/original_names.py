"""The names of the authors' Deformable-DETR for weights of ours: checkpoints to convert back."""

import re

import torch

# What names of ours are called in the authors' repository; the rest keeps its name.
ORIGINAL = [
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


def as_original(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of ours under the keys of the authors' repository; two decoder layers."""
    weights = dict(weights)
    renamed = {}
    if "query_source.pos.weight" in weights:
        halves = [weights.pop(f"query_source.{kind}.weight") for kind in ("pos", "content")]
        renamed["query_embed.weight"] = torch.cat(halves, dim=1)
    for name, tensor in weights.items():
        pattern, key = next((p, k) for p, k in ORIGINAL if re.match(p, name))
        renamed[re.sub(f"^{pattern}", key, name)] = tensor
    return renamed
