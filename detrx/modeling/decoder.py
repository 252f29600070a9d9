"""The decoder: runs all query groups through its layers, and calls components that groups share only once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import FFN, MultiheadAttention, inverse_sigmoid, run_layer
from detrx.layers.module_list import TypedModuleList

from .cross_attention import CrossAttention
from .heads import PredictionHeads
from .queries import Predictions, Queries, QueryGroup, QueryLayout, portions, put, split_by_name, take
from .tokens import MultiScaleTokens


@dataclass(frozen=True)
class LayerOutput:
    """What a decoder layer returns if some queries bypass it.

    Attributes:
        content: (B, N, C) new content.
        modified: (B, N) bool, False for queries that keep their references and predictions.
        order: (B, N) int64, the row in which the query of each row was before; None: all are where they were.
    """

    content: Tensor
    modified: Tensor
    order: Tensor | None = None


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and FFN, each followed by dropout, residual and LayerNorm.

    Args:
        cross_attn: `Queries` of N queries and the memory -> (B, N, C).
    """

    def __init__(
        self,
        self_attn: MultiheadAttention,
        cross_attn: CrossAttention,
        ffn: FFN,
        embed_dim: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn = cross_attn
        self.norm2 = nn.LayerNorm(embed_dim)
        self.ffn = ffn
        self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        self.self_attn.reset_parameters()
        self.norm1.reset_parameters()
        self.cross_attn.reset_parameters()
        self.norm2.reset_parameters()
        self.ffn.reset_parameters()
        self.norm3.reset_parameters()

    def forward(
        self, queries: Queries, memory: MultiScaleTokens, layout: QueryLayout, index: int
    ) -> Tensor | LayerOutput:
        """
        Args:
            queries: of all groups, N in total.
            layout: which of the N queries belong to which group.
            index: number of this layer, for groups with components of their own.

        Returns:
            (B, N, C) new content; a `LayerOutput` if some queries bypass the layer.
        """
        queries = replace(queries, content=self.self_attention(queries, layout, index))
        x = self.cross_attention(queries, memory, layout, index)
        return self.transform(x, layout, index)

    def self_attention(self, queries: Queries, layout: QueryLayout, index: int) -> Tensor:
        """First block, with residual and LayerNorm -> (B, N, C)."""
        x = queries.content
        x = x + self.dropout(self.attend_queries(x, queries.given("pos"), layout, index))
        norms = layout.by_component("norm1", index, self.norm1)
        return put([(slices, norm(part)) for norm, slices, part in portions(x, norms)])

    def cross_attention(self, queries: Queries, memory: MultiScaleTokens, layout: QueryLayout, index: int) -> Tensor:
        """Second block, with residual and LayerNorm -> (B, N, C)."""
        cross_attns = layout.by_component("cross_attn", index, self.cross_attn)
        attended = put([(slices, attn(queries.take(slices), memory)) for attn, slices in cross_attns])
        return self.norm2(queries.content + self.dropout(attended))

    def transform(self, x: Tensor, layout: QueryLayout, index: int) -> Tensor:
        """Third block, the FFN, with residual and LayerNorm: (B, N, C) -> (B, N, C)."""
        return self.norm3(x + self.dropout(self.feed_forward(x, layout, index)))

    def feed_forward(self, x: Tensor, layout: QueryLayout, index: int) -> Tensor:
        """FFN of each group. Groups that share a mixture of experts go through it in one call, whatever their gates."""
        out = []
        for ffn, slices, part in portions(x, layout.by_component("ffn", index, self.ffn)):
            own_gate = getattr(ffn, "gate", None)
            gates = [] if own_gate is None else layout.by_component("gate", index, own_gate, slices)
            if all(gate is own_gate for gate, _ in gates):
                out.append((slices, ffn(part)))
            else:
                logits = put([(of_gate, gate(gated)) for gate, of_gate, gated in portions(x, gates)])
                out.append((slices, ffn(part, logits)))
        return put(out)

    def attend_queries(self, x: Tensor, pos: Tensor, layout: QueryLayout, index: int) -> Tensor:
        """Self-attention of each group over the keys it sees.

        Each attention module projects all its queries at once, and pairs in groups that do not see each other are not
        computed. A group's own module also projects the keys of the other groups that it sees.
        """
        out = []
        for attn, slices in layout.by_component("self_attn", index, self.self_attn):
            served = [group for group in layout.groups if layout.slices[group.name] in slices]
            seen = layout.seen_by(served)
            projected = attn.project(take(x, list(seen.values())), take(pos, list(seen.values())))
            q, k, v = (split_by_name(each, seen, 2) for each in projected)
            attended = []
            for group in served:
                tokens = None if group.route is None or group.route.tokens is None else group.route.tokens[index]
                names, blocked = layout.visible(group, 0 if tokens is None else tokens.count)
                keys, values = [k[name] for name in names], [v[name] for name in names]
                if tokens is not None:
                    _, token_k, token_v = attn.project(*(t.expand(len(x), -1, -1) for t in tokens()))
                    keys, values = [token_k, *keys], [token_v, *values]
                key, value = (each[0] if len(each) == 1 else torch.cat(each, dim=2) for each in (keys, values))
                attended.append(attn.attend(q[group.name], key, value, blocked))
            joined = attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)
            out.append((slices, attn.out_proj(joined)))
        return put(out)


class Decoder(nn.Module):
    """Decoder layers, and the heads that read every layer's output.

    Args:
        layer: copied `num_layers` times, each copy with its own initialisation.
        heads: class and box heads of the layers.
        first_layer: replaces the first copy, for detectors whose first layer is different.
        position: called before every layer as `position(queries, index, memory)`; returns the queries with a new `pos`,
            `sine` or both. None: every layer uses the `pos` of the query groups.
        norm: applied to a layer's output before the heads. References are refined from the output without it, as in
            the published implementations.
        refine_boxes: the references of a layer are the detached boxes of the layer before (iterative box refinement).
        look_forward_twice: the gradient of a layer's box loss also reaches the box head of the layer before (DINO).
        inverse_sigmoid_eps: references are clamped to this distance from 0 and 1 before their logit is taken.
        activation_checkpointing: recompute the activations inside of layers in the backward pass instead of keeping
            them.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        num_layers: int,
        heads: PredictionHeads,
        first_layer: DecoderLayer | None = None,
        position: nn.Module | None = None,
        norm: nn.Module | None = None,
        refine_boxes: bool = True,
        look_forward_twice: bool = False,
        inverse_sigmoid_eps: float = 1e-3,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        if look_forward_twice and not refine_boxes:
            raise InvalidInputError("look_forward_twice needs refine_boxes=True")
        layers = [copy.deepcopy(layer) for _ in range(num_layers)]
        if first_layer is not None:
            layers[0] = first_layer
        self.layers = TypedModuleList(layers)
        for module in self.layers:
            module.reset_parameters()
        self.heads = heads
        self.position = position
        self.norm = norm
        self.refine_boxes = refine_boxes
        self.look_forward_twice = look_forward_twice
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.activation_checkpointing = activation_checkpointing

    def forward(self, groups: Sequence[QueryGroup], memory: MultiScaleTokens) -> dict[str, Predictions]:
        """Predictions of all layers for each group, by the name of the group.

        A query that bypasses a layer keeps its reference, and its prediction in this layer is that of the layer before;
        see `before_layers` for the first layer.
        """
        layout = QueryLayout(groups)
        queries = layout.queries()
        base = queries.reference
        predicted: list[dict[str, Tensor]] = []
        for index, layer in enumerate(self.layers):
            if self.position is not None:
                queries = self.position(queries, index, memory)
            out = run_layer(layer, queries, memory, layout, index, recompute=self.activation_checkpointing)
            x = out if isinstance(out, Tensor) else out.content
            parts, delta = self.predict(x, base, index)
            reference, next_base = queries.reference, base
            if self.refine_boxes:
                refined = self.shift(reference, delta if self.norm is None else self.heads.boxes(x, index))
                reference = refined.detach()
                next_base = refined if self.look_forward_twice else reference
            if not isinstance(out, Tensor):
                before = predicted[-1] if predicted else self.before_layers(queries)
                parts = {name: keep(part, before[name], out.modified, out.order) for name, part in parts.items()}
                if self.refine_boxes and reference is not None and next_base is not None:
                    kept, kept_base = self.box_references(queries.reference, base, before["boxes"])
                    reference = keep(reference, kept, out.modified)
                    next_base = keep(next_base, kept_base, out.modified)
            predicted.append(parts)
            queries, base = replace(queries, content=x, reference=reference), next_base
        split = {name: layout.split(torch.stack([parts[name] for parts in predicted]), dim=2) for name in predicted[0]}
        return {
            group.name: Predictions(**{name: of[group.name] for name, of in split.items()}, padding=group.padding)
            for group in layout.groups
        }

    def predict(self, x: Tensor, base: Tensor | None, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """Predictions of a layer, by the attribute of `Predictions`, from content (B, N, C) and the references that
        boxes are relative to; and the output (B, N, 4) of the box head."""
        normed = x if self.norm is None else self.norm(x)
        logits, delta = self.heads(normed, index)
        parts = {"logits": logits, "boxes": self.shift(base, delta)}
        quality = self.heads.quality(normed, index)
        return parts if quality is None else parts | {"quality": quality}, delta

    def before_layers(self, queries: Queries) -> dict[str, Tensor]:
        """Predictions of queries that bypass the first layer.

        The reference is the box. Coordinates that it lacks, such as the size of a reference point, and the logits are
        those that the heads of the first layer predict from the content with which the queries enter.
        """
        parts, delta = self.predict(queries.content, queries.reference, 0)
        return parts | {"boxes": complete(queries.reference, delta.float().sigmoid())}

    def box_references(self, reference: Tensor | None, base: Tensor | None, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """References that are kept, and what boxes are relative to, both (B, N, 4): behind the first layer, the layers
        that refine boxes expect boxes, so the predicted `boxes` complete reference points."""
        return complete(reference, boxes.detach()), complete(base, boxes if self.look_forward_twice else boxes.detach())

    def shift(self, reference: Tensor | None, delta: Tensor) -> Tensor:
        """Move points (..., 2) or boxes (..., 4) in [0, 1] by `delta` (..., 4) in logit space -> boxes (..., 4).

        If there is no reference, `delta` is the logit of the box.
        """
        if reference is None:
            return delta.float().sigmoid()
        logit = inverse_sigmoid(reference, self.inverse_sigmoid_eps)
        if reference.shape[-1] == 2:
            logit = F.pad(logit, (0, 2))
        return (delta.float() + logit).sigmoid()


def complete(reference: Tensor | None, boxes: Tensor) -> Tensor:
    """A reference (..., 4 or 2), and the coordinates that it lacks from `boxes` (..., 4)."""
    return boxes if reference is None else torch.cat([reference, boxes[..., reference.shape[-1] :]], dim=-1)


def keep(new: Tensor, old: Tensor, modified: Tensor, order: Tensor | None = None) -> Tensor:
    """`new` (B, N, ...) where `modified` (B, N), elsewhere `old`, whose rows are taken in `order` (B, N)."""
    if order is not None:
        old = old.take_along_dim(order[..., None], dim=1)
    return torch.where(modified[..., None], new, old)
