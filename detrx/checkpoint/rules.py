"""Rules that turn the weights of another code base into ours, and a report on what became of each of them.

A rule says what one kind of key becomes. From a list of rules, the first one applies whose pattern matches the whole
key. Names are `re` templates, which may refer to groups of the pattern as `\\1`.

    Rename(r"transformer\\.encoder\\.layers\\.(\\d+)\\.norms\\.0\\.(.+)", r"encoder.layers.\\1.norm1.\\2")
    Split(r"query_embedding\\.weight", ["query_source.pos.weight", "query_source.content.weight"], dim=1)
    *pack([r"(.+)\\.q_proj\\.weight", r"(.+)\\.k_proj\\.weight", r"(.+)\\.v_proj\\.weight"], r"\\1.in_proj_weight")
    Ignore(r".+\\.num_batches_tracked", "statistic of batch norm")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["Ignore", "Pack", "Piece", "Rename", "Report", "Rule", "Split", "apply_rules", "pack"]


@dataclass(frozen=True)
class Piece:
    """A piece of a checkpoint's tensor, and the piece of one of our tensors that it becomes.

    Attributes:
        name: our tensor.
        chunk, chunks: index and number of equal parts of the checkpoint's tensor.
        rows: start and stop of the rows of the checkpoint's tensor, if it is not divided into equal parts.
        part, parts: index and number of equal parts of our tensor.
        dim: the dimension along which tensors are divided.
    """

    name: str
    chunk: int = 0
    chunks: int = 1
    part: int = 0
    parts: int = 1
    dim: int = 0
    rows: tuple[int, int | None] | None = None

    def of_source(self, tensor: Tensor) -> Tensor:
        """The piece of a checkpoint's tensor; the whole tensor if it does not have dimension `dim`."""
        if self.rows is not None:
            return tensor[slice(*self.rows)]
        whole = self.chunks == 1 or tensor.ndim <= self.dim
        return tensor if whole else tensor.tensor_split(self.chunks, self.dim)[self.chunk]

    def of_ours(self, tensor: Tensor) -> Tensor:
        """The piece of our tensor, or of its gradient."""
        return tensor if self.parts == 1 else tensor.tensor_split(self.parts, self.dim)[self.part]


@dataclass(frozen=True)
class Rename:
    """Rename the tensor; with several names, copy it to each of them."""

    pattern: str
    names: Sequence[str]

    def __init__(self, pattern: str, *names: str):
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "names", names)

    def pieces(self, match: re.Match) -> list[Piece]:
        return [Piece(match.expand(name)) for name in self.names]


@dataclass(frozen=True)
class Split:
    """Split the tensor along `dim`, into equal parts or parts with the given numbers of rows.

    The last part gets all remaining rows.
    """

    pattern: str
    names: Sequence[str]
    dim: int = 0
    rows: Sequence[int] | None = None

    def pieces(self, match: re.Match) -> list[Piece]:
        count = len(self.names)
        if self.rows is not None:
            ends = list(accumulate(self.rows))
            bounds = zip([0, *ends[:-1]], [*ends[:-1], None], strict=True)
            return [Piece(match.expand(n), rows=rows) for n, rows in zip(self.names, bounds, strict=True)]
        return [Piece(match.expand(n), chunk=i, chunks=count, dim=self.dim) for i, n in enumerate(self.names)]


@dataclass(frozen=True)
class Pack:
    """Make the tensor part number `part` of the `parts` equal parts of `name` along `dim`."""

    pattern: str
    name: str
    part: int
    parts: int
    dim: int = 0

    def pieces(self, match: re.Match) -> list[Piece]:
        return [Piece(match.expand(self.name), part=self.part, parts=self.parts, dim=self.dim)]


@dataclass(frozen=True)
class Ignore:
    """Leave out the tensor, which is not needed; `reason` says why."""

    pattern: str
    reason: str

    def pieces(self, match: re.Match) -> list[Piece]:
        return []


Rule = Rename | Split | Pack | Ignore


def pack(patterns: Sequence[str], name: str, dim: int = 0) -> list[Pack]:
    """Rules that concatenate several tensors along `dim`, in the order of `patterns`."""
    return [Pack(pattern, name, part, len(patterns), dim) for part, pattern in enumerate(patterns)]


@dataclass
class Report:
    """What became of every tensor of a checkpoint, and where every tensor of the model came from.

    Attributes:
        format: of the checkpoint.
        pieces: what each key of the checkpoint became.
        ignored: keys that are not needed, with the reason.
        skipped: keys and names left out at the caller's request.
        kept: names that keep their value in the model, with the reason.
        notes: remarks for the reader.
        unknown: keys that no rule matches.
        superfluous: keys that would get names which the model does not have, with these names.
        missing: names that no key provides.
        incomplete: packed names for which the checkpoint has only some parts, or parts of different shapes.
        wrong_shapes: (name, shape in the checkpoint, shape in the model).
        contradictions: (key, name): a second key for the name, with another value.
    """

    format: str
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    superfluous: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    wrong_shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    contradictions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """One line for each tensor without a place or a source; empty if the conversion is complete."""
        return [
            *(f"{key} has no counterpart in the model" for key in self.unknown),
            *(f"{key} would be {', '.join(names)}, not in the model" for key, names in self.superfluous.items()),
            *(f"{key} differs from another key for {name}" for key, name in self.contradictions),
            *(f"{name} is {there}, the model has {here}" for name, there, here in self.wrong_shapes),
            *(f"{name} is not in the checkpoint in equal parts" for name in self.incomplete),
            *(f"{name} is not in the checkpoint" for name in self.missing),
        ]

    def __str__(self) -> str:
        names = {piece.name for pieces in self.pieces.values() for piece in pieces}
        lines = [f"{self.format} checkpoint: {len(self.pieces)} tensors became {len(names)} of ours"]
        lines += _by_reason("ignored", self.ignored)
        lines += _by_reason("left out", dict.fromkeys(self.skipped, "as requested"))
        lines += _by_reason("kept from the model", self.kept)
        lines += [f"  problem: {problem}" for problem in self.problems]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _by_reason(what: str, reasons: Mapping[str, str]) -> list[str]:
    """One line for each reason, with all names that have it."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return [f"  {what} ({reason}): {', '.join(names)}" for reason, names in groups.items()]


def apply_rules(
    source: Mapping[str, Tensor], rules: Sequence[Rule], names: Sequence[str], report: Report
) -> dict[str, Tensor]:
    """Rename, split and pack the tensors of a checkpoint.

    Args:
        names: the tensors of the model.
        report: receives `pieces`, `ignored`, `unknown`, `superfluous`, `incomplete` and `contradictions`.

    Returns:
        our tensors, without incomplete ones. If several keys become one tensor, their values must be equal; the first
        is taken.
    """
    known = set(names)
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    parts: dict[str, dict[int, Tensor]] = {}
    layout: dict[str, Piece] = {}
    for key, tensor in source.items():
        found = next(((rule, match) for pattern, rule in compiled if (match := pattern.fullmatch(key))), None)
        if found is None:
            report.unknown.append(key)
            continue
        rule, match = found
        if isinstance(rule, Ignore):
            report.ignored[key] = rule.reason
            continue
        pieces = rule.pieces(match)
        if strange := [piece.name for piece in pieces if piece.name not in known]:
            report.superfluous[key] = strange
            continue
        report.pieces[key] = pieces
        for piece in pieces:
            value = piece.of_source(tensor)
            given = parts.setdefault(piece.name, {}).setdefault(piece.part, value)
            if given is not value and not torch.equal(given, value):
                report.contradictions.append((key, piece.name))
            layout[piece.name] = piece
    converted = {}
    for name, values in parts.items():
        piece = layout[name]
        if len(values) < piece.parts or len({value.shape for value in values.values()}) > 1:
            report.incomplete.append(name)
        elif piece.parts == 1:
            converted[name] = values[0]
        else:
            converted[name] = torch.cat([values[part] for part in range(piece.parts)], dim=piece.dim)
    return converted
