"""Rules that several formats share."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from .rules import Ignore, Rename, Rule

__all__ = ["BACKBONE_STATISTICS", "heads", "input_projections"]

BACKBONE_STATISTICS = Ignore(r".*\.num_batches_tracked", "counts training steps")


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
