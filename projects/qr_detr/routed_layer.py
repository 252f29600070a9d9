"""A decoder layer with a router, which lets some queries bypass the layer or a part of it (Eqs. 5-10 and EEQR_F)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import is_recomputing
from detrx.modeling import DecoderLayer, LayerOutput, MultiScaleTokens, Queries
from detrx.modeling.queries import QueryLayout
from detrx.ops import query_gather, query_route, query_scatter

WRAPPED = ("self_attn", "cross_attn", "full")
REGROUP = ("scatter", "concat")
FFN_ON = ("processed", "modified", "all")
ROUTER_READS = ("layer", "block")
DEFAULT_FFN = "processed"
"""The value of `ffn` of `QueryRouting` and its configs."""


@dataclass(frozen=True)
class Routed:
    """Inputs and counts of the main queries, which a routed layer records in training.

    Attributes:
        queries: the queries at the router.
        counts: (B,) int64, number of passing queries.
    """

    queries: Queries
    counts: Tensor


class RoutedDecoderLayer(DecoderLayer):
    """A decoder layer with a router. Queries that do not pass bypass the wrapped block, including its residual and
    LayerNorm.

    The queries that the layer modifies are those that its cross-attention works on: all in EEQR_SA, the passing ones in
    EEQR_CA and EEQR_F. The others bypass the layer: they keep reference and prediction, and their content, which
    nothing changes but the self-attention of EEQR_CA and the FFN if `ffn` is "all".

    The layer takes over the components of a plain layer, under the same names. The same router routes every group of
    queries separately. In a wrapped self-attention, a query sees only passing queries, of its own and of other groups.
    Bypassing queries are not computed. If different numbers of queries pass in different images, no query sees the
    empty slots.

    Args:
        layer: the plain layer.
        router: maps queries (B, N, C) to a bool mask (B, N) of those that pass, and to sigma (B, N).
        wrapped: the routed block: "self_attn" (EEQR_SA), "cross_attn" (EEQR_CA), or "full" (EEQR_F).
        regroup: "scatter" puts passing queries back into their places (Eq. 8). "concat" puts them first and bypassing
            queries after them, with their predictions, while positions and references stay (an ablation of the paper).
        ffn: queries that the FFN processes: "processed", the passing ones; "modified", see above; or "all", as in Eqs.
            9 and 10.
        add_pos: the router reads content + position, instead of content alone.
        router_reads: the queries that the router reads: "layer", those that enter the layer; or "block", those that
            enter the wrapped block, in EEQR_CA the self-attended ones, as in Eq. 10.

    Attributes:
        routed: record of the last forward pass in training; the consumer resets it to None.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        router: nn.Module,
        wrapped: str = "full",
        regroup: str = "scatter",
        ffn: str = DEFAULT_FFN,
        add_pos: bool = True,
        router_reads: str = "layer",
    ):
        for key, value, known in (
            ("wrapped", wrapped, WRAPPED),
            ("regroup", regroup, REGROUP),
            ("ffn", ffn, FFN_ON),
            ("router_reads", router_reads, ROUTER_READS),
        ):
            if value not in known:
                raise InvalidInputError(f"{key} must be one of {', '.join(known)}, got {value!r}")
        embed_dim = layer.norm1.normalized_shape[0]
        super().__init__(layer.self_attn, layer.cross_attn, layer.ffn, embed_dim, layer.dropout.p)
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.router = router
        self.wrapped, self.regroup, self.ffn_on, self.add_pos = wrapped, regroup, ffn, add_pos
        self.router_reads = router_reads
        self.routed: Routed | None = None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.router.reset_parameters()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "routed": None}

    def read(self, queries: Queries) -> Tensor:
        """The input (B, N, C) of the router."""
        return queries.content + queries.pos if self.add_pos else queries.content

    def forward(
        self, queries: Queries, memory: MultiScaleTokens, layout: QueryLayout, index: int
    ) -> Tensor | LayerOutput:
        """See `DecoderLayer`."""
        if self.training and torch.compiler.is_compiling():
            return self.uncompiled(queries, memory, layout, index)
        return self.run(queries, memory, layout, index)

    @torch.compiler.disable
    def uncompiled(
        self, queries: Queries, memory: MultiScaleTokens, layout: QueryLayout, index: int
    ) -> Tensor | LayerOutput:
        """`run` outside of compiled graphs: in training, the number of computed queries depends on the data."""
        return self.run(queries, memory, layout, index)

    def run(self, queries: Queries, memory: MultiScaleTokens, layout: QueryLayout, index: int) -> Tensor | LayerOutput:
        read = queries
        if self.wrapped == "cross_attn":
            queries = replace(queries, content=self.self_attention(queries, layout, index))
        if self.router_reads == "block":
            read = queries
        with torch.no_grad():
            keep, _ = self.router(self.read(read))
        self.note(read, keep, layout)
        packing = Packing.of(queries, keep, layout)
        x, order = queries.content, packing.order() if self.regroup == "concat" else None
        if packing.slots:
            x = packing.scatter(x, self.processed(packing, memory, index))
        if order is not None:
            x = x.take_along_dim(order[..., None], dim=1)
        if self.wrapped == "self_attn":
            return self.after_self_attention(replace(queries, content=x), packing, memory, layout, index)
        if self.ffn_on == "all":
            x = self.transform(x, layout, index)
        if packing.all_pass:
            return x
        modified = packing.keep if order is None else packing.keep.take_along_dim(order, dim=1)
        return LayerOutput(x, modified, order)

    def after_self_attention(
        self, queries: Queries, packing: Packing, memory: MultiScaleTokens, layout: QueryLayout, index: int
    ) -> Tensor:
        """The rest of EEQR_SA, whose cross-attention works on all queries."""
        x = self.cross_attention(queries, memory, layout, index)
        if self.ffn_on != "processed":
            return self.transform(x, layout, index)
        if not packing.slots:
            return x
        front = packing.front() if self.regroup == "concat" else packing
        rows, *route = query_gather(x, (front.index, front.valid))
        return query_scatter(x, self.transform(rows, packing.layout, index), *route)

    def processed(self, packing: Packing, memory: MultiScaleTokens, index: int) -> Tensor:
        """The passing queries (B, K, C) after the wrapped block."""
        queries, layout = packing.queries, packing.layout
        if self.wrapped != "cross_attn":
            queries = replace(queries, content=self.self_attention(queries, layout, index))
        if self.wrapped != "self_attn":
            queries = replace(queries, content=self.cross_attention(queries, memory, layout, index))
            if self.ffn_on != "all":
                return self.transform(queries.content, layout, index)
        return queries.content

    def note(self, queries: Queries, keep: Tensor, layout: QueryLayout) -> None:
        if self.training and not is_recomputing() and not torch.compiler.is_compiling():
            main = layout.slices["main"]
            self.routed = Routed(queries.take([main]), keep[:, main].sum(1))


@dataclass(frozen=True)
class Packing:
    """The passing queries, packed into K slots, group by group.

    Attributes:
        index, valid: (B, K), the route: the index of the query in each slot, and False for empty slots.
        keep: (B, N) bool, True for passing queries.
        queries: the queries in the slots.
        layout: positions of the groups in the slots.
        unpacked: positions of the groups in the original queries.
        all_pass: whether the host knows that all queries pass.
    """

    index: Tensor
    valid: Tensor
    keep: Tensor
    queries: Queries
    layout: QueryLayout
    unpacked: QueryLayout
    all_pass: bool

    @property
    def slots(self) -> int:
        return self.index.shape[1]

    @classmethod
    def of(cls, queries: Queries, keep: Tensor, layout: QueryLayout) -> Packing:
        """Pack the passing queries. The host waits for the device once, to get the number of slots. In compiled and
        exported graphs, whose sizes cannot depend on data, and on the meta device, there are as many slots as
        queries."""
        masks = [keep[:, place] for place in layout.slices.values()]
        masks = [
            mask if group.padding is None else mask & ~group.padding
            for mask, group in zip(masks, layout.groups, strict=True)
        ]
        sizes, full = slots_of(masks)
        routes = [query_route(mask, capacity=size) for mask, size in zip(masks, sizes, strict=True)]
        starts = [place.start for place in layout.slices.values()]
        index = torch.cat([route.index + start for route, start in zip(routes, starts, strict=True)], dim=1)
        valid = torch.cat([route.valid for route in routes], dim=1)
        parts = [queries.content, queries.pos, queries.reference, queries.sine]
        packed = iter(query_gather([part for part in parts if part is not None], (index, valid))[0])
        taken = Queries(*(None if part is None else next(packed) for part in parts))
        groups = []
        for group, content, route, is_full in zip(
            layout.groups, taken.content.split(sizes, dim=1), routes, full, strict=True
        ):
            blocked = group.blocked
            if blocked is not None and not (is_full and content.shape[1] == group.content.shape[1]):
                images = torch.arange(len(content), device=content.device)[:, None, None]
                blocked = blocked.expand(len(content), -1, -1)
                blocked = blocked[images, route.index[:, :, None], route.index[:, None, :]] & route.valid[:, :, None]
            padding = None if is_full else ~route.valid
            group = replace(group, content=content, pos=None, reference=None, blocked=blocked, padding=padding)
            groups.append(group)
        all_pass = all(full) and index.shape[1] == keep.shape[1]
        return cls(index, valid, torch.cat(masks, dim=1), taken, QueryLayout(groups), layout, all_pass)

    def scatter(self, x: Tensor, processed: Tensor) -> Tensor:
        """Merge the bypassing queries in `x` (B, N, C) with the processed ones (B, K, C) -> (B, N, C), Eq. 8."""
        return query_scatter(x, processed, self.index, self.valid)

    def order(self) -> Tensor:
        """(B, N) the queries of each group, the passing ones first."""
        parts = [
            self.keep[:, place].logical_not().to(torch.uint8).argsort(dim=1, stable=True) + place.start
            for place in self.unpacked.slices.values()
        ]
        return torch.cat(parts, dim=1)

    def front(self) -> Packing:
        """The same slots, with indices for queries in which the passing ones of each group come first."""
        slots = [torch.arange(p.stop - p.start, device=self.index.device) for p in self.layout.slices.values()]
        starts = [place.start for place in self.unpacked.slices.values()]
        index = torch.cat([each + start for each, start in zip(slots, starts, strict=True)])
        return replace(self, index=index.expand_as(self.valid).masked_fill(~self.valid, 0))


def slots_of(masks: list[Tensor]) -> tuple[list[int], list[bool]]:
    """For each group with a mask (B, N_g): the largest number of passing queries in an image, which is the number of
    slots, and whether all images fill their slots.

    In training, there is at least one slot, so that every parameter gets a gradient, even if it is zero.
    """
    if torch.compiler.is_compiling() or masks[0].is_meta:
        return [mask.shape[1] for mask in masks], [False] * len(masks)
    least = 1 if torch.is_grad_enabled() or len(masks) > 1 else 0
    counts = torch.stack([mask.sum(1) for mask in masks]).tolist()
    sizes = [min(max(least, *of_images), mask.shape[1]) for of_images, mask in zip(counts, masks, strict=True)]
    return sizes, [min(of_images) == size for of_images, size in zip(counts, sizes, strict=True)]
