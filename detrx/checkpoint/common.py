"""Rules that several formats share."""

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .messages import CheckpointError
from .rules import Ignore, Rename, Rule, Split, pack

__all__ = [
    "backbone",
    "deformable_queries",
    "denoising",
    "heads",
    "input_projections",
    "position_networks",
    "query_projections",
]


@runtime_checkable
class _NamedByOthers(Protocol):
    """A backbone that knows the names that others give its weights."""

    def own_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


def backbone(source: Mapping[str, Tensor], model: nn.Module, prefix: str) -> list[Rule]:
    """The backbone, under any naming that `TimmBackbone.own_names` knows.

    Args:
        prefix: pattern (without groups) of the prefix of its names.

    Raises:
        CheckpointError: the backbone cannot be converted.
    """
    inner = re.compile(rf"(?:{prefix})(.+)")
    keys = {match[1]: key for key, match in zip(source, map(inner.fullmatch, source), strict=True) if match}
    if not isinstance(model.backbone, _NamedByOthers):
        return [Rename(re.escape(key), f"backbone.{name}") for name, key in keys.items()]
    # Each tensor is replaced by its index, which shows where it ends up.
    order = list(keys.values())
    try:
        traced = model.backbone.own_names({name: torch.tensor([i]) for i, name in enumerate(keys)})
    except ValueError as error:
        raise CheckpointError(f"the backbone of the checkpoint cannot be converted: {error}") from error
    rules: list[Rule] = []
    for name, numbers in traced.items():
        rules += pack([re.escape(order[i]) for i in numbers.tolist()], f"backbone.{name}")
    used = {int(i) for numbers in traced.values() for i in numbers}
    reason = "not a weight: computed, or a count of steps"
    return rules + [Ignore(re.escape(key), reason) for i, key in enumerate(order) if i not in used]


def denoising(model: nn.Module, label_embedding: str) -> list[Rule]:
    """The label embedding of denoising queries, which is needed only for training.

    Args:
        label_embedding: pattern (without groups) of its name.
    """
    methods = [name for name, each in model.get_submodule("methods").named_children() if hasattr(each, "label_embed")]
    if not methods:
        return [Ignore(rf"({label_embedding})\.(.+)", "for denoising, which the model does without")]
    return [Rename(rf"{label_embedding}\.(.+)", *(rf"methods.{name}.label_embed.\1" for name in methods))]


def deformable_queries(source: Mapping[str, Tensor], model: nn.Module, query_embedding: str) -> list[Rule]:
    """The queries of Deformable DETR, H-DETR and DINO, one-stage or two-stage.

    Args:
        query_embedding: pattern of the name of the learned embedding. In one-stage detectors it holds positions and
            contents side by side, in two-stage detectors with mixed query selection only contents.
    """
    if "transformer.reference_points.weight" in source:
        embedding = Split(query_embedding, ["query_source.pos.weight", "query_source.content.weight"], dim=1)
    else:
        embedding = _learned_contents(model, query_embedding)
    return [
        embedding,
        Rename(r"transformer\.tgt_embed\.weight", "query_source.query_embed.weight"),
        *query_projections("transformer"),
    ]


def _learned_contents(model: nn.Module, pattern: str) -> Split:
    """The learned contents of two-stage detectors: the rows of the main queries, then those that methods add."""
    rows = {"query_source": getattr(model.query_source, "num_queries", 0)}
    for name, method in model.get_submodule("methods").named_children():
        further = getattr(method, "further", None)
        if further is not None and hasattr(further, "query_embed"):
            rows[f"methods.{name}.further"] = further.num_queries
    return Split(pattern, [f"{name}.query_embed.weight" for name in rows], rows=list(rows.values()))


def query_projections(prefix: str) -> list[Rule]:
    """The layers that make reference points (one-stage), proposals, and positions of queries (two-stage).

    Args:
        prefix: first part of their names.
    """
    return [
        Rename(rf"{prefix}\.reference_points\.(.+)", r"query_source.reference_point.\1"),
        Rename(rf"{prefix}\.enc_output\.(.+)", r"query_source.token_proj.\1"),
        Rename(rf"{prefix}\.enc_output_norm\.(.+)", r"query_source.token_norm.\1"),
        Rename(rf"{prefix}\.pos_trans\.(.+)", r"query_source.pos_proj.\1"),
        Rename(rf"{prefix}\.pos_trans_norm\.(.+)", r"query_source.pos_norm.\1"),
    ]


def position_networks(prefix: str, from_references: bool) -> list[Rule]:
    """Patterns and position networks of Conditional DETR, DAB-DETR and DN-DETR.

    Args:
        prefix: first part of their names.
        from_references: whether positions are computed from references, as in DAB-DETR; in Conditional DETR
            reference points are computed from positions, by a network of the same name.
    """
    return [
        Rename(rf"{prefix}\.patterns\.weight", "query_source.patterns.weight"),
        Rename(rf"{prefix}\.encoder\.query_scale\.(.+)", r"encoder.pos_scale.\1"),
        Rename(rf"{prefix}\.decoder\.query_scale\.(.+)", r"decoder.position.scale.mlp.\1"),
        Rename(rf"{prefix}\.decoder\.ref_anchor_head\.(.+)", r"decoder.position.size.\1"),
        Rename(
            rf"{prefix}\.decoder\.ref_point_head\.(.+)",
            r"decoder.position.mlp.\1" if from_references else r"query_source.reference_point.\1",
        ),
    ]


def heads(source: Mapping[str, Tensor], model: nn.Module, class_head: str, box_head: str) -> list[Rule]:
    """Heads that are numbered by decoder layer; the number after the last is the head of the encoder's proposals.

    Args:
        class_head, box_head: patterns (without groups) of the names before the number.
    """
    layers = len(_module_list(model, "decoder.layers"))
    rules: list[Rule] = []
    for pattern, kind in ((class_head, "class_head"), (box_head, "box_head")):
        count = len(_module_list(model, f"decoder.heads.{kind}s"))
        names = [rf"decoder.heads.{kind}s.{layer % count}.\1" for layer in range(layers)]
        number = re.compile(rf"{pattern}\.(\d+)\..+")
        numbers = {int(match[1]) for match in map(number.fullmatch, source) if match}
        if numbers == {0}:  # shared by all layers and stored once
            rules.append(Rename(rf"{pattern}\.0\.(.+)", *dict.fromkeys(names)))
            continue
        rules += [Rename(rf"{pattern}\.{layer}\.(.+)", name) for layer, name in enumerate(names)]
        rules.append(Rename(rf"{pattern}\.{layers}\.(.+)", rf"query_source.{kind}.\1"))
    return rules


def input_projections(model: nn.Module, prefix: str) -> list[Rule]:
    """A neck whose levels have consecutive numbers: first those of the backbone's maps, then the extra ones.

    Args:
        prefix: pattern (without groups) of the names before the number.
    """
    levels, extra = len(_module_list(model, "neck.levels")), len(_module_list(model, "neck.extra_levels"))
    return [
        *(Rename(rf"{prefix}\.{i}\.(.+)", rf"neck.levels.{i}.\1") for i in range(levels)),
        *(Rename(rf"{prefix}\.{levels + i}\.(.+)", rf"neck.extra_levels.{i}.\1") for i in range(extra)),
    ]


def _module_list(model: nn.Module, name: str) -> nn.ModuleList:
    """A list of modules by its dotted name."""
    found = model.get_submodule(name)
    assert isinstance(found, nn.ModuleList), f"{name} is a {type(found).__name__}, expected a ModuleList"
    return found
