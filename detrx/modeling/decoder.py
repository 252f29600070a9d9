"""The decoder: all query groups, layer by layer, with one call of every component that groups share."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.layers import FFN, MultiheadAttention, MultiScaleDeformableAttention, inverse_sigmoid

from .heads import PredictionHeads
from .queries import Predictions, QueryGroup, QueryLayout, put, take
from .tokens import MultiScaleTokens


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and FFN, each with residual, dropout and LayerNorm after it."""

    def __init__(
        self,
        self_attn: MultiheadAttention,
        cross_attn: MultiScaleDeformableAttention,
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
        for module in (self.self_attn, self.norm1, self.cross_attn, self.norm2, self.ffn, self.norm3):
            module.reset_parameters()

    def forward(
        self, x: Tensor, pos: Tensor, reference: Tensor, memory: MultiScaleTokens, layout: QueryLayout, index: int
    ) -> Tensor:
        """
        Args:
            x, pos: (B, N, C) content and position of the queries of all groups.
            reference: (B, N, L, 2 or 4) references on each level.
            layout: where the groups lie in N; `index`: which layer this is, for groups with components of their own.
        """
        x = self.norm1(x + self.dropout(self.attend_queries(x, pos, layout, index)))
        attended = [
            (
                slices,
                attn(
                    take(x + pos, slices),
                    take(reference, slices),
                    memory.tokens,
                    memory.spatial_shapes,
                    memory.level_start_index,
                    memory.padding_mask,
                ),
            )
            for attn, slices in layout.by_component("cross_attn", index, self.cross_attn)
        ]
        x = self.norm2(x + self.dropout(put(attended)))
        ffns = layout.by_component("ffn", index, self.ffn)
        return self.norm3(x + self.dropout(put([(slices, ffn(take(x, slices))) for ffn, slices in ffns])))

    def attend_queries(self, x: Tensor, pos: Tensor, layout: QueryLayout, index: int) -> Tensor:
        """Self-attention of each group over the keys it sees: projections once, blocked pairs never computed.

        A group reads the keys of the groups it sees as its own module projects them.
        """
        out = []
        for attn, slices in layout.by_component("self_attn", index, self.self_attn):
            q, k, v = attn.project(x, pos)
            attended = []
            for group in layout.groups:
                own = layout.slices[group.name]
                if own in slices:
                    keys, blocked = layout.visible(group)
                    attended.append(attn.attend(take(q, [own], 2), take(k, keys, 2), take(v, keys, 2), blocked))
            joined = attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)
            out.append((slices, attn.out_proj(joined)))
        return put(out)


class Decoder(nn.Module):
    """`num_layers` copies of `layer`, each with its own initialisation, and the heads that read every layer's output.

    Args:
        heads: class and box heads of the layers.
        refine_boxes: every layer starts from the boxes of the one before it (iterative box refinement), detached.
        look_forward_twice: the box loss of a layer also reaches the box head of the layer before it (DINO).
        inverse_sigmoid_eps: clamp of the references before their logit is taken.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        num_layers: int,
        heads: PredictionHeads,
        refine_boxes: bool = True,
        look_forward_twice: bool = False,
        inverse_sigmoid_eps: float = 1e-3,
    ):
        super().__init__()
        if look_forward_twice and not refine_boxes:
            raise ValueError("look_forward_twice needs refine_boxes=True")
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        for module in self.layers:
            module.reset_parameters()
        self.heads = heads
        self.refine_boxes = refine_boxes
        self.look_forward_twice = look_forward_twice
        self.inverse_sigmoid_eps = inverse_sigmoid_eps

    def forward(self, groups: Sequence[QueryGroup], memory: MultiScaleTokens) -> dict[str, Predictions]:
        """Predictions of every layer for every group, by the name of the group."""
        layout = QueryLayout(groups)
        x, pos, reference = layout.cat("content"), layout.cat("pos"), layout.cat("reference")
        base = reference
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            x = layer(x, pos, memory.per_level(reference), memory, layout, index)
            layer_logits, delta = self.heads(x, index)
            logits.append(layer_logits)
            boxes.append(self.shift(base, delta))
            if self.refine_boxes:
                refined = self.shift(reference, delta)
                reference = refined.detach()
                base = refined if self.look_forward_twice else reference
        logits, boxes = layout.split(torch.stack(logits), dim=2), layout.split(torch.stack(boxes), dim=2)
        return {name: Predictions(logits[name], boxes[name]) for name in logits}

    def shift(self, reference: Tensor, delta: Tensor) -> Tensor:
        """Move points (..., 2) or boxes (..., 4) in [0, 1] by `delta` (..., 4) in logit space -> boxes (..., 4)."""
        logit = inverse_sigmoid(reference, self.inverse_sigmoid_eps)
        if reference.shape[-1] == 2:
            logit = F.pad(logit, (0, 2))
        return (delta.float() + logit).sigmoid()
