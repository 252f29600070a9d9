"""Multi-head attention, with projection and attention as separate steps for query groups."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError

from .record import Recorded


@dataclass(frozen=True)
class AttentionInputs:
    """The queries and keys of one call of `Attention.attend`.

    Attributes:
        q: (B, heads, N, d) projected queries.
        k: (B, heads, M, d) projected keys.
        blocked: bool, broadcastable to (B, heads, N, M), True where a query must not see a key; None: every query sees
            every key.
    """

    q: Tensor
    k: Tensor
    blocked: Tensor | None

    def weights(self) -> Tensor:
        """The attention map (B, heads, N, M), before dropout, in float32."""
        scores = (self.q * self.q.shape[-1] ** -0.5 @ self.k.transpose(-1, -2)).float()
        return (scores if self.blocked is None else scores.masked_fill(self.blocked, float("-inf"))).softmax(-1)


class Attention(Recorded[AttentionInputs]):
    """Scaled dot-product attention between queries, keys and values that a subclass projects.

    Every call of `attend` can be recorded.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if embed_dim % num_heads:
            raise InvalidInputError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None = None) -> Tensor:
        """
        Args:
            q: (B, heads, N, d) projected queries.
            k: (B, heads, M, d) projected keys.
            v: (B, heads, M, e) projected values.
            blocked: bool, broadcastable to (B, heads, N, M); True where a query must not see a key.

        Returns:
            (B, N, heads * e), before the output projection.
        """
        if self.record is not None:
            self.record.append(AttentionInputs(q, k, blocked))
        visible = None if blocked is None else ~blocked
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=self.dropout if self.training else 0.0
        )
        return out.transpose(1, 2).flatten(2)


class MultiheadAttention(Attention):
    """Attention with packed projections; positions are added to the inputs of queries and keys.

    `project` and `attend` are separate because the decoder projects all query groups at once, and then each group
    attends to the keys it may see.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__(embed_dim, num_heads, dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys from `x + pos`, values from `x`: (B, N, C) each -> three of (B, heads, N, C / heads)."""
        dim = x.shape[-1]
        qk = F.linear(x + pos, self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim])
        v = F.linear(x, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])
        q, k = qk.chunk(2, dim=-1)
        return self.split_heads(q), self.split_heads(k), self.split_heads(v)


class ConditionalSelfAttention(Attention):
    """Self-attention that projects content and position separately and adds the results (arXiv 2108.06152)."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__(embed_dim, num_heads, dropout)
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset_linears(self)

    def project(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Content and position (B, N, C) -> queries, keys, values (B, heads, N, C / heads)."""
        q = self.query_content_proj(x) + self.query_pos_proj(pos)
        k = self.key_content_proj(x) + self.key_pos_proj(pos)
        return self.split_heads(q), self.split_heads(k), self.split_heads(self.value_proj(x))


def reset_linears(module: nn.Module) -> None:
    """Initialise all linear layers in `module` with Xavier weights."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.reset_parameters()
            nn.init.xavier_uniform_(linear.weight)
