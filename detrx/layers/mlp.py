"""The two kinds of multi-layer perceptron in a detection transformer."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear
from .module_list import TypedModuleList

_ROWS = 2048
"""Rows that an FFN processes at a time at inference on a CPU, to keep hidden activations in the cache."""


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU in between: (..., input_dim) -> (..., output_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = TypedModuleList(Linear(i, o) for i, o in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)


class FFN(nn.Module):
    """Position-wise feed-forward block without its residual: (..., embed_dim) -> (..., embed_dim).

    Args:
        activation: between the linear layers; default ReLU. It may have parameters, like a PReLU.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float = 0.0, activation: nn.Module | None = None):
        super().__init__()
        self.linear1 = Linear(embed_dim, hidden_dim)
        self.activation = activation
        self.linear2 = Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.linear1, self.linear2):
            linear.reset_parameters()
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._block(x)
        return torch.cat([self._block(part) for part in x.split(_ROWS, dim=-2)], dim=-2)

    def _block(self, x: Tensor) -> Tensor:
        hidden = self.linear1(x)
        if self.activation is not None:
            hidden = self.activation(hidden)
        else:
            # The output of a Linear is a view: if it were changed in place, autograd would copy its whole gradient.
            hidden = F.relu(hidden, inplace=not hidden.requires_grad)
        return self.linear2(self.dropout(hidden))
