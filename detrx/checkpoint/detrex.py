"""Weights of detrex-style checkpoints under our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_RENAMES = [
    (r"neck\.convs\.(\d+)\.conv\.", r"neck.levels.\1.0."),
    (r"neck\.convs\.(\d+)\.norm\.", r"neck.levels.\1.1."),
    (r"neck\.extra_convs\.(\d+)\.conv\.", r"neck.extra_levels.\1.0."),
    (r"neck\.extra_convs\.(\d+)\.norm\.", r"neck.extra_levels.\1.1."),
    (r"transformer\.level_embeds$", r"tokenizer.level_embed"),
    (r"transformer\.reference_points\.", r"query_source.reference_point."),
    (r"transformer\.enc_output\.", r"query_source.token_proj."),
    (r"transformer\.enc_output_norm\.", r"query_source.token_norm."),
    (r"transformer\.pos_trans\.", r"query_source.pos_proj."),
    (r"transformer\.pos_trans_norm\.", r"query_source.pos_norm."),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.", r"\1.layers.\2.ffn.linear1."),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.1\.", r"\1.layers.\2.ffn.linear2."),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.norms\.0\.", r"\1.layers.\2.norm1."),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.norms\.1\.", r"\1.layers.\2.norm2."),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.2\.", r"decoder.layers.\1.norm3."),
    (r"transformer\.encoder\.layers\.(\d+)\.attentions\.0\.", r"encoder.layers.\1.self_attn."),
    (r"transformer\.decoder\.layers\.(\d+)\.attentions\.0\.attn\.", r"decoder.layers.\1.self_attn."),
    (r"transformer\.decoder\.layers\.(\d+)\.attentions\.1\.", r"decoder.layers.\1.cross_attn."),
    (r"backbone\.", r"backbone."),
]
_HEAD = re.compile(r"(?:transformer\.decoder\.)?(class|bbox)_embed\.(\d+)\.(.+)")


def convert_detrex(source: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of a detrex checkpoint for `model`, a Deformable DETR of the same sizes.

    Keys that alias one parameter (detrex lists a shared head once per layer) must hold equal values.

    Returns:
        a state dict with exactly the keys and shapes of `model`.

    Raises:
        ValueError: a key has no counterpart, a weight of the model is not given, shapes differ, or aliases disagree;
            lists all of them.
    """
    converted: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in source.items():
        targets = rename(key, value, model)
        if not targets:
            problems.append(f"{key} has no counterpart in the model")
        for name, tensor in targets.items():
            if name in converted and not torch.equal(converted[name], tensor):
                problems.append(f"{key} differs from another key for {name}")
            converted[name] = tensor
    expected = model.state_dict()
    problems += [f"{name} is not in the checkpoint" for name in expected if name not in converted]
    for name, tensor in converted.items():
        if name not in expected:
            problems.append(f"{name} (renamed) is not in the model")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, the model has {tuple(expected[name].shape)}")
    if problems:
        raise ValueError("checkpoint does not fit the model:\n  " + "\n  ".join(problems))
    return converted


def rename(key: str, value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Our names and values for one detrex key; empty if it is unknown."""
    if key == "query_embedding.weight":
        pos, content = value.chunk(2, dim=-1)
        return {"query_source.pos.weight": pos, "query_source.content.weight": content}
    if head := _HEAD.fullmatch(key):
        return {_head_name(head[1], int(head[2]), head[3], model): value}
    for pattern, replacement in _RENAMES:
        name, count = re.subn("^" + pattern, replacement, key)
        if count:
            return {name: value}
    return {}


def _head_name(kind: str, layer: int, rest: str, model: nn.Module) -> str:
    """detrex numbers the encoder's head behind those of the decoder, and repeats shared heads once per layer."""
    kind = {"class": "class_head", "bbox": "box_head"}[kind]
    if layer == len(model.decoder.layers):
        return f"query_source.{kind}.{rest}"
    count = len(model.decoder.heads.class_heads)
    return f"decoder.heads.{kind}s.{layer % count}.{rest}"
