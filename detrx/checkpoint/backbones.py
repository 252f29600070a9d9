"""Renaming the backbone weights of other projects to timm's names.

Names do not tell everything. The ResNets of these detectors, like torchvision's and timm's, have the stride of a
bottleneck in its 3x3 convolution and an eps of 1e-5 in batch norm. Detectron2's ImageNet weights from MSRA (R-50.pkl,
R-101.pkl) have the same names, but do not fit: they need the stride in the first 1x1 convolution (STRIDE_IN_1X1) and
BGR images.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from detrx.errors import InvalidInputError

from . import efficientnet

# A key that exists in one naming only. What precedes it is the prefix of the whole backbone.
_ANCHORS = {
    "torchvision": r"layer1\.0\.conv1\.weight",  # and timm, the original DETR repositories, DETR in transformers
    "detectron2": r"res2\.0\.conv1\.weight",
    "hf_resnet": r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
    "swin": r"layers\.0\.blocks\.0\.attn\.qkv\.weight",  # original, Detectron2, timm
    "hf_swin": r"(?:swin\.)?encoder\.layers\.0\.blocks\.0\.attention\.(?:self\.query|q_proj)\.weight",
    "efficientnet_pytorch": r"_conv_stem\.weight",
}

_RULES = {
    "torchvision": [],
    "detectron2": [
        (r"stem\.conv1\.norm\.", lambda m: "bn1."),
        (r"stem\.", lambda m: ""),
        (r"res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
        (r"res(\d)\.(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
        (r"res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
        (r"res(\d)\.(\d+)\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
    ],
    "hf_resnet": [
        (r"embedder\.embedder\.convolution\.", lambda m: "conv1."),
        (r"embedder\.embedder\.normalization\.", lambda m: "bn1."),
        (
            r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'normalization')}.",
        ),
        (
            r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.{'conv' if m[4] == 'convolution' else 'bn'}{int(m[3]) + 1}.",
        ),
    ],
    "swin": [(r"norm(\d)\.", lambda m: f"norms.res{int(m[1]) + 2}.")],
    "hf_swin": [
        (r"hidden_states_norms\.stage(\d)\.", lambda m: f"norms.res{int(m[1]) + 1}."),
        (r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.", lambda m: "patch_embed.proj."),
        (r"(?:swin\.)?embeddings\.norm\.", lambda m: "patch_embed.norm."),
        (r"(?:swin\.)?layernorm\.", lambda m: "norm."),
        (r"(?:swin\.)?encoder\.layers\.", lambda m: "layers."),
    ],
}

_HF_SWIN_BLOCK = [
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (
        r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
]
_HF_SWIN_QKV = re.compile(r"(.*\.)attention\.(?:self\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)")
# Computed from sizes, and not stored by timm; batch norm uses its count of batches only if momentum is None.
_COMPUTED = ("relative_position_index", "attn_mask", "num_batches_tracked")


def split_backbone(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint of a detector or classifier into the backbone's weights, without their prefix, and all others.

    If the naming is unknown, all weights are taken for the backbone's and left as they are.

    Raises:
        ValueError: the checkpoint has several backbones.
    """
    naming, prefix = _recognise(state_dict)
    if naming is None:
        return dict(state_dict), {}
    backbone = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return backbone, {key: value for key, value in state_dict.items() if not key.startswith(prefix)}


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of one backbone, with or without a common prefix, to the names of timm's model.

    Supported are ResNets from torchvision, the original DETR repositories, Detectron2 and transformers (timm's or its
    own), Swin from the original code, Detectron2 and transformers, and EfficientNets from efficientnet_pytorch. The
    layer norms that detectors apply to Swin's maps become "norms.res2.weight" etc. Buffers that timm computes and batch
    norm's counts of batches are dropped. Unknown names stay as they are.

    Raises:
        ValueError: there are several backbones, keys outside the backbone's prefix, or a query without key or value.
    """
    naming, prefix = _recognise(state_dict)
    if outside := [key for key in state_dict if not key.startswith(prefix)]:
        raise InvalidInputError(f"not part of the backbone {prefix!r}: {', '.join(outside[:5])}")
    weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if not key.endswith(_COMPUTED)}
    if naming is None:
        return weights
    if naming == "efficientnet_pytorch":
        names = efficientnet.timm_names(weights)
        return {names.get(key, key): value for key, value in weights.items()}
    weights = {_rename(key, _RULES[naming]): value for key, value in weights.items()}
    if naming == "hf_swin":
        weights = _join_query_key_value(weights)
    if "layers.0.downsample.reduction.weight" in weights:
        # Swin downsamples at the end of a stage, timm at the beginning of the next one.
        shift = [(r"layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.")]
        weights = {_rename(key, shift): value for key, value in weights.items()}
    return weights


def _recognise(state_dict: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """The naming of the backbone in `state_dict` (None if unknown) and its prefix."""
    for naming, anchor in _ANCHORS.items():
        pattern = re.compile(rf"(.*?){anchor}")
        prefixes = [match[1] for match in map(pattern.fullmatch, state_dict) if match and match[1][-1:] in ("", ".")]
        if len(prefixes) > 1:
            raise InvalidInputError(f"several backbones: {', '.join(repr(prefix) for prefix in prefixes)}")
        if prefixes:
            return naming, prefixes[0]
    return None, ""


def _rename(key: str, rules: list) -> str:
    for pattern, replacement in rules:
        if match := re.match(pattern, key):
            return replacement(match) + key[match.end() :]
    return key


def _join_query_key_value(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections to query, key and value in the blocks of transformers' Swin."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        if match := _HF_SWIN_QKV.fullmatch(key):
            parts.setdefault(f"{match[1]}attn.qkv.{match[3]}", {})[match[2][0]] = value
            continue
        if ".blocks." in key:
            for pattern, replacement in _HF_SWIN_BLOCK:
                key = re.sub(pattern, replacement, key)
        joined[key] = value
    for key, part in parts.items():
        if missing := [name for name in "qkv" if name not in part]:
            raise InvalidInputError(f"{key}: no {', '.join(missing)} among query, key and value")
        joined[key] = torch.cat([part[name] for name in "qkv"])
    return joined
