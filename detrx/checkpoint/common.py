"""Rules that several formats share."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detrx.modeling import Denoising

from .files import CheckpointError
from .rules import Ignore, Rename, Rule, Split, pack

__all__ = ["backbone", "denoising", "heads", "input_projections", "learned_content"]


def backbone(source: Mapping[str, Tensor], model: nn.Module, prefix: str) -> list[Rule]:
    """The backbone, whose own naming may be any that `TimmBackbone.own_names` knows.

    Args:
        prefix: pattern (without groups) of what stands before its names.
    """
    inner = re.compile(rf"(?:{prefix})(.+)")
    keys = {match[1]: key for key, match in zip(source, map(inner.fullmatch, source), strict=True) if match}
    if not hasattr(model.backbone, "own_names"):
        return [Rename(re.escape(key), f"backbone.{name}") for name, key in keys.items()]
    # Numbers instead of weights show what becomes of which.
    order = list(keys.values())
    try:
        traced = model.backbone.own_names({name: torch.tensor([i]) for i, name in enumerate(keys)})
    except ValueError as error:
        raise CheckpointError(f"the backbone of the checkpoint cannot be converted: {error}") from error
    rules: list[Rule] = []
    for name, numbers in traced.items():
        rules += pack([re.escape(order[i]) for i in numbers.tolist()], f"backbone.{name}")
    used = {int(i) for numbers in traced.values() for i in numbers}
    reason = "no weight: computed, or a count of steps"
    return rules + [Ignore(re.escape(key), reason) for i, key in enumerate(order) if i not in used]


def denoising(model: nn.Module, label_embedding: str) -> list[Rule]:
    """The label embedding of denoising queries, which only training needs.

    Args:
        label_embedding: pattern (without groups) of its name.
    """
    methods = [name for name, method in model.methods.named_children() if isinstance(method, Denoising)]
    if not methods:
        return [Ignore(rf"({label_embedding})\.(.+)", "for denoising, which the model does without")]
    return [Rename(rf"{label_embedding}\.(.+)", *(rf"methods.{name}.label_embed.\1" for name in methods))]


def learned_content(model: nn.Module, pattern: str) -> Split:
    """The content of the queries of two-stage detectors, rows of the main ones first, then those that methods add."""
    rows = {"query_source": getattr(model.query_source, "num_queries", 0)}
    for name, method in model.methods.named_children():
        if hasattr(getattr(method, "further", None), "query_embed"):
            rows[f"methods.{name}.further"] = method.further.num_queries
    return Split(pattern, [f"{name}.query_embed.weight" for name in rows], rows=list(rows.values()))


def heads(source: Mapping[str, Tensor], model: nn.Module, class_head: str, box_head: str) -> list[Rule]:
    """Heads that are numbered by decoder layer, with that of the encoder's proposals behind the last.

    Args:
        class_head, box_head: patterns (without groups) of the names before the number.
    """
    layers = len(model.decoder.layers)
    rules: list[Rule] = []
    for pattern, kind in ((class_head, "class_head"), (box_head, "box_head")):
        count = len(getattr(model.decoder.heads, f"{kind}s"))
        names = [rf"decoder.heads.{kind}s.{layer % count}.\1" for layer in range(layers)]
        number = re.compile(rf"{pattern}\.(\d+)\..+")
        numbers = {int(match[1]) for match in map(number.fullmatch, source) if match}
        if numbers == {0}:  # tied heads that are stored once
            rules.append(Rename(rf"{pattern}\.0\.(.+)", *dict.fromkeys(names)))
            continue
        rules += [Rename(rf"{pattern}\.{layer}\.(.+)", name) for layer, name in enumerate(names)]
        rules.append(Rename(rf"{pattern}\.{layers}\.(.+)", rf"query_source.{kind}.\1"))
    return rules


def input_projections(model: nn.Module, prefix: str) -> list[Rule]:
    """A neck whose levels are numbered through, those made from the last map behind those of the backbone.

    Args:
        prefix: pattern (without groups) of the names before the number.
    """
    levels, extra = len(model.neck.levels), len(model.neck.extra_levels)
    return [
        *(Rename(rf"{prefix}\.{i}\.(.+)", rf"neck.levels.{i}.\1") for i in range(levels)),
        *(Rename(rf"{prefix}\.{levels + i}\.(.+)", rf"neck.extra_levels.{i}.\1") for i in range(extra)),
    ]
