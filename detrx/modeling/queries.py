"""Inputs and outputs of a decoder: groups of queries, and predictions for each group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError

M = TypeVar("M")
"""A module, or None."""


class QueryTokens(nn.Module):
    """Learned tokens that the queries of a group attend to in self-attention, as additional keys and values.

    Every layer has its own tokens, and no outputs are computed for them.
    """

    def __init__(self, count: int, embed_dim: int):
        super().__init__()
        self.count = count
        self.content = nn.Parameter(torch.empty(count, embed_dim))
        self.pos = nn.Parameter(torch.empty(count, embed_dim))
        nn.init.normal_(self.content)
        nn.init.normal_(self.pos)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Content and position of the m tokens, (m, C) each."""
        return self.content, self.pos


@dataclass(frozen=True)
class Route:
    """The components of the decoder layers that a group passes through.

    Each attribute has one module per decoder layer, owned by the method that adds the group, or is None for the
    decoder's own components.

    Attributes:
        self_attn, cross_attn, ffn: the blocks.
        norm1: LayerNorm after self-attention.
        gate: replaces the gate of a `MixtureFFN`; maps the queries to logits of the experts.
        tokens: `QueryTokens` that the group's queries attend to in addition to the queries they see; None: no tokens.
    """

    self_attn: Sequence[nn.Module] | None = None
    cross_attn: Sequence[nn.Module] | None = None
    ffn: Sequence[nn.Module] | None = None
    norm1: Sequence[nn.Module] | None = None
    gate: Sequence[nn.Module] | None = None
    tokens: Sequence[QueryTokens] | None = None


@dataclass(frozen=True)
class QueryGroup:
    """Queries that share their supervision, their route, and the groups that they see.

    Attributes:
        name: "main", or a name given by a method.
        content: (B, N, C).
        pos: (B, N, C) position embedding of the queries; None if the decoder computes it from the references.
        reference: (B, N, 4) cxcywh or (B, N, 2) xy, in [0, 1] of the unpadded image; None for queries without
            references (DETR).
        route: the components it passes through; None: the decoder's own.
        blocked: (N, N) or (B, N, N) bool, True where a query must not attend to another of the same group; None: no
            attention is blocked.
        sees: names of other groups whose queries this one may attend to in self-attention.
        padding: (B, N) bool, True for empty rows, which no query sees and which are not detected; None: no empty rows.
    """

    name: str
    content: Tensor
    pos: Tensor | None
    reference: Tensor | None
    route: Route | None = None
    blocked: Tensor | None = None
    sees: tuple[str, ...] = ()
    padding: Tensor | None = None


@dataclass(frozen=True)
class Queries:
    """The concatenated queries of all groups, the input of a decoder layer.

    Attributes:
        content: (B, N, C).
        pos: (B, N, C) position embedding, added to queries and keys in attention.
        reference: (B, N, 4) cxcywh or (B, N, 2) xy, in [0, 1] of the unpadded image; None: no references.
        sine: (B, N, C) sine embedding of the reference, for cross-attention that compares positions separately from
            content (Conditional DETR, DAB-DETR); otherwise None.
    """

    content: Tensor
    pos: Tensor | None
    reference: Tensor | None
    sine: Tensor | None = None

    def given(self, part: str) -> Tensor:
        """`pos`, `reference` or `sine`, where there must be one.

        Raises:
            ValueError: it is None.
        """
        value = getattr(self, part)
        if value is None:
            raise InvalidInputError(f"the queries have no {part}, which a part of the decoder needs")
        return value

    def take(self, slices: Sequence[slice]) -> Queries:
        """The queries of some groups."""
        others = (None if part is None else take(part, slices) for part in (self.pos, self.reference, self.sine))
        return Queries(take(self.content, slices), *others)


@dataclass(frozen=True)
class Predictions:
    """Outputs of T layers for one group (T = 1 for the encoder).

    Attributes:
        logits: (T, B, N, K).
        boxes: (T, B, N, 4) cxcywh in [0, 1] of the unpadded image.
        anchors: the boxes before regression, in the format of `boxes`; None for queries.
        quality: (T, B, N, K) logits of the predicted IoU for each class; None without such a head.
        padding: (B, N) bool, True for empty rows; None: no empty rows.
    """

    logits: Tensor
    boxes: Tensor
    anchors: Tensor | None = None
    quality: Tensor | None = None
    padding: Tensor | None = None

    def of_layers(self, layers: slice) -> Predictions:
        """The predictions of some layers."""
        anchors, quality = (None if part is None else part[layers] for part in (self.anchors, self.quality))
        return Predictions(self.logits[layers], self.boxes[layers], anchors, quality, self.padding)


class QueryLayout:
    """Positions of the groups in the concatenated queries (B, N_1 + N_2 + ..., C), and which groups see each other."""

    def __init__(self, groups: Sequence[QueryGroup]):
        names = [group.name for group in groups]
        if len(set(names)) < len(names):
            raise InvalidInputError(f"query groups need distinct names, got {names}")
        dims = {group.name: None if group.reference is None else group.reference.shape[-1] for group in groups}
        if len(set(dims.values())) > 1:
            raise InvalidInputError(
                f"all query groups of a decoder need references of one kind, 2-d or 4-d, got {dims}"
            )
        if len({group.pos is None for group in groups}) > 1:
            given = [group.name for group in groups if group.pos is not None]
            raise InvalidInputError(
                f"either all query groups of a decoder must have a pos or none; of {names}, only {given} have one"
            )
        for group in groups:
            if unknown := set(group.sees) - set(names):
                raise InvalidInputError(
                    f"query group {group.name!r} sees {sorted(unknown)}, but the groups are {names}"
                )
        self.groups = tuple(groups)
        self.slices = side_by_side({group.name: group.content.shape[1] for group in groups})

    def queries(self) -> Queries:
        """The concatenated queries of all groups."""
        content = _cat([group.content for group in self.groups])
        return Queries(content, self._cat_all("pos"), self._cat_all("reference"))

    def _cat_all(self, attribute: str) -> Tensor | None:
        """What all groups have, or none."""
        parts = [getattr(group, attribute) for group in self.groups]
        return None if parts[0] is None else _cat(parts)

    def split(self, x: Tensor, dim: int) -> dict[str, Tensor]:
        """Split `x` along `dim` into the parts of the groups."""
        return split_by_name(x, self.slices, dim)

    def by_component(
        self, component: str, layer: int, default: M, among: Sequence[slice] | None = None
    ) -> list[tuple[M, list[slice]]]:
        """The distinct modules used as `component` in `layer`, each with the slices of the groups that use it.

        Args:
            component: name of an attribute of `Route`.
            layer: index of the decoder layer.
            default: the decoder's own module.
            among: consider only the groups with these slices.

        Returns:
            pairs of a module and slices; the module is None for groups without this component.
        """
        served: dict[int, tuple[M, list[slice]]] = {}
        for group in self.groups:
            if among is not None and self.slices[group.name] not in among:
                continue
            own = None if group.route is None else getattr(group.route, component)
            module = default if own is None else own[layer]
            key = 0 if module is None else id(module)  # torch.compile cannot trace id(None)
            served.setdefault(key, (module, []))[1].append(self.slices[group.name])
        return list(served.values())

    def seen_by(self, groups: Sequence[QueryGroup]) -> dict[str, slice]:
        """Slices of `groups` and of all groups that they see."""
        names = {name for group in groups for name in (group.name, *group.sees)}
        return {name: place for name, place in self.slices.items() if name in names}

    def visible(self, group: QueryGroup, num_tokens: int = 0) -> tuple[tuple[str, ...], Tensor | None]:
        """The keys of a group in self-attention: `num_tokens` tokens, which are never blocked, then the visible groups.

        Returns:
            names of the groups that `group` sees, itself first; and a bool mask of the blocked keys, broadcastable to
            (B, heads, N, M) for M keys, or None.
        """
        names = (group.name, *group.sees)
        blocked = None
        if group.blocked is not None:
            others = sum(self.slices[name].stop - self.slices[name].start for name in group.sees)
            blocked = F.pad(group.blocked, (num_tokens, others), value=False)
            blocked = blocked[:, None] if blocked.ndim == 3 else blocked
        padding = self._padding(names, num_tokens)
        if padding is None:
            return names, blocked
        return names, padding if blocked is None else padding | blocked

    def _padding(self, names: Sequence[str], num_tokens: int) -> Tensor | None:
        """(B, 1, 1, M) bool, True for empty rows among the tokens and groups `names`; None: no empty rows.

        If the first group is empty in an image, its first row stays visible: attention is NaN if all keys are blocked.
        """
        members = [next(group for group in self.groups if group.name == name) for name in names]
        given = [group.padding for group in members if group.padding is not None]
        if not given:
            return None
        first, *rest = (
            given[0].new_zeros(given[0].shape[0], group.content.shape[1]) if group.padding is None else group.padding
            for group in members
        )
        if first.shape[1]:
            first = torch.cat([first[:, :1] & ~first.all(dim=1, keepdim=True), first[:, 1:]], dim=1)
        tokens = first.new_zeros(first.shape[0], num_tokens)
        return torch.cat([tokens, first, *rest], dim=1)[:, None, None]


def _cat(parts: list[Tensor]) -> Tensor:
    """(B, N_i, ...) each -> (B, N_1 + N_2 + ..., ...)"""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def side_by_side(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Slices of consecutive parts with the given sizes."""
    ends = accumulate(sizes.values())
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def split_by_name(x: Tensor, slices: Mapping[str, slice], dim: int) -> dict[str, Tensor]:
    """Split `x` along `dim` into consecutive parts with the lengths of `slices`."""
    sizes = [s.stop - s.start for s in slices.values()]
    return dict(zip(slices, [x] if len(sizes) == 1 else x.split(sizes, dim), strict=True))


def take(x: Tensor, slices: Sequence[slice], dim: int = 1) -> Tensor:
    """Concatenate the given slices of `x` along `dim`; `x` itself if they cover it in order."""
    if sum(s.stop - s.start for s in slices) == x.shape[dim] and all(a.stop == b.start for a, b in pairwise(slices)):
        return x
    parts = [x.narrow(dim, s.start, s.stop - s.start) for s in slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def portions(x: Tensor, served: Sequence[tuple[M, Sequence[slice]]]) -> Iterator[tuple[M, Sequence[slice], Tensor]]:
    """Yield each module with its slices and `take(x, slices)`; the slices of the modules must be disjoint.

    `x` is split only once, so its gradient is also assembled once. The gradient of each `take` would be as large as
    `x` and mostly zeros.
    """
    if len(served) == 1:
        ((module, slices),) = served
        yield module, slices, take(x, slices)
        return
    runs: list[list[int]] = []  # start, stop, which of `served`
    for start, stop, owner in sorted((s.start, s.stop, i) for i, (_, slices) in enumerate(served) for s in slices):
        if runs and runs[-1][1:] == [start, owner]:
            runs[-1][1] = stop
        else:
            runs.append([start, stop, owner])
    x = take(x, [slice(start, stop) for start, stop, _ in runs])
    parts = x.split([stop - start for start, stop, _ in runs], dim=1)
    for index, (module, slices) in enumerate(served):
        own = [part for part, (_, _, owner) in zip(parts, runs, strict=True) if owner == index]
        yield module, slices, own[0] if len(own) == 1 else torch.cat(own, dim=1)


def put(parts: Sequence[tuple[Sequence[slice], Tensor]]) -> Tensor:
    """Inverse of `take` along dimension 1: concatenate results for several slices in the order of the layout."""
    if len(parts) == 1:
        return parts[0][1]
    pieces: list[tuple[int, Tensor]] = []
    for slices, x in parts:
        sizes = [s.stop - s.start for s in slices]
        pieces.extend(zip((s.start for s in slices), x.split(sizes, dim=1), strict=True))
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda item: item[0])], dim=1)
