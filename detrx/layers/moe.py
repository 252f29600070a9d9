"""Mixtures of experts: feed-forward networks in which each token passes through k of several experts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.ops import expert_ends, expert_linear, moe_combine, moe_dispatch, moe_route

from .linear import Linear
from .module_list import TypedModuleList
from .recompute import is_recomputing


@dataclass
class ExpertLoad:
    """Distribution of the tokens of one call over the E experts.

    Attributes:
        counts: (E,) int64, assignments of each expert; they sum to tokens * k.
        mean_probability: (E,) mean over the tokens of the gate's softmax; differentiable.
    """

    counts: Tensor
    mean_probability: Tensor

    def balancing_loss(self) -> Tensor:
        """Load-balancing loss of the Switch Transformer, unweighted: 1 for a uniform load, at most E.

        It is E times the sum over the experts of (share of the assignments) * (mean probability).
        """
        share = self.counts / self.counts.sum().clamp(min=1)
        return len(self.counts) * (share.to(self.mean_probability.dtype) * self.mean_probability).sum()


torch.export.register_dataclass(ExpertLoad, serialized_type_name="detrx.layers.ExpertLoad")


class MoEFFN(nn.Module):
    """`FFN` with `num_experts` pairs of linear layers: (..., embed_dim) -> (..., embed_dim), without its residual.

    A gate, which is a linear layer, gives each token a logit per expert. The token's output is the sum of the outputs
    of its `top_k` best experts, weighted with their renormalised probabilities. Several gates may share the experts.
    With one expert it is an `FFN`, with `top_k` = `num_experts` a dense mixture.

    Args:
        embed_dim: channels of the tokens.
        hidden_dim: hidden channels of each expert.
        num_experts: at most 256.
        top_k: experts per token, 1 to 8, at most `num_experts`.
        num_gates: gates over the same experts; with 0, the logits are passed to `mix`.
        dropout: after the ReLU, as in `FFN`.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int = 2,
        num_gates: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not 1 <= top_k <= min(num_experts, 8) or num_experts > 256:
            raise InvalidInputError(
                f"MoEFFN: top_k is {top_k} and num_experts {num_experts}, "
                "expected 1 <= top_k <= num_experts, top_k <= 8 and num_experts <= 256"
            )
        self.top_k = top_k
        self.gates = TypedModuleList(nn.Linear(embed_dim, num_experts, bias=False) for _ in range(num_gates))
        self.weight1 = nn.Parameter(torch.empty(num_experts, embed_dim, hidden_dim))
        self.bias1 = nn.Parameter(torch.empty(num_experts, hidden_dim))
        self.weight2 = nn.Parameter(torch.empty(num_experts, hidden_dim, embed_dim))
        self.bias2 = nn.Parameter(torch.empty(num_experts, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert like an `FFN`: Xavier weights, biases uniform within 1 / sqrt(inputs)."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            for expert in weight:
                nn.init.xavier_uniform_(expert)
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(bias, -bound, bound)
        for gate in self.gates:
            gate.reset_parameters()

    def forward(self, x: Tensor, gate: int = 0) -> tuple[Tensor, ExpertLoad]:
        """Args:
            x: (..., embed_dim).
            gate: index of the gate that routes these tokens.

        Returns:
            (..., embed_dim), and the load of the experts.
        """
        if not 0 <= gate < len(self.gates):
            raise InvalidInputError(f"MoEFFN: gate is {gate}, expected 0 to {len(self.gates) - 1}")
        logits = self.gates[gate](x)
        output, counts = self.mix(x, logits)
        return output, expert_load(logits, counts, self.top_k)

    def mix(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` without the gate.

        Args:
            x: (..., embed_dim).
            logits: (..., num_experts), of the tokens `x`.

        Returns:
            (..., embed_dim), and the assignments of each expert, (num_experts,) int64.
        """
        tokens = x.reshape(-1, x.shape[-1])
        weights, _, counts, ends, order, place = moe_route(flat_logits(logits), self.top_k)
        rows = moe_dispatch(tokens, order, place)
        ends = expert_ends(ends, rows, self.weight1)
        hidden = self.dropout(expert_linear(rows, self.weight1, self.bias1, ends, relu=True))
        output = moe_combine(expert_linear(hidden, self.weight2, self.bias2, ends), weights, order, place)
        return output.view(x.shape), counts

    def extra_repr(self) -> str:
        experts, embed_dim, hidden_dim = self.weight1.shape
        return f"{embed_dim}, {hidden_dim}, num_experts={experts}, top_k={self.top_k}"


def flat_logits(logits: Tensor) -> Tensor:
    """(..., E) -> (T, E), at least float32."""
    logits = logits.reshape(-1, logits.shape[-1])
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def expert_load(logits: Tensor, counts: Tensor, top_k: int) -> ExpertLoad:
    """Load of tokens with the logits (..., E), whose `top_k` assignments are counted in `counts` (E,)."""
    # The number of tokens (at least 1) is computed from the counts, because the one in the shape may be symbolic.
    mean_probability = top_k * flat_logits(logits).softmax(1).sum(0) / counts.sum().clamp(min=1)
    return ExpertLoad(counts, mean_probability)


class Gate(Linear):
    """Linear layer from tokens (..., embed_dim) to a logit per expert (..., num_experts), which records the load.

    Attributes:
        load: of the last forward pass in training, with its graph. Recomputed passes are not recorded, and copies start
            with None. Set it to None after use.
    """

    def __init__(self, embed_dim: int, num_experts: int, top_k: int):
        super().__init__(embed_dim, num_experts, bias=False)
        self.top_k = top_k
        self.load: ExpertLoad | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.training:
            with torch.no_grad():
                counts = moe_route(flat_logits(logits), self.top_k).counts
            load = expert_load(logits, counts, self.top_k)
            if not is_recomputing():  # checked here because a recomputed pass must save the same tensors as the first
                self.load = load
        return logits

    def __getstate__(self) -> dict:
        return {**self.__dict__, "load": None}


class MixtureFFN(nn.Module):
    """A mixture of experts where an `FFN` is expected: (..., embed_dim) -> (..., embed_dim), without its residual.

    Args:
        embed_dim, hidden_dim, num_experts, top_k, dropout: see `MoEFFN`. Each token uses `top_k * hidden_dim` hidden
            channels.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, num_experts: int = 8, top_k: int = 2, dropout: float = 0.0):
        super().__init__()
        self.experts = MoEFFN(embed_dim, hidden_dim, num_experts, top_k, num_gates=0, dropout=dropout)
        self.gate = Gate(embed_dim, num_experts, top_k)

    def reset_parameters(self) -> None:
        self.experts.reset_parameters()
        self.gate.reset_parameters()

    def forward(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """`logits` (..., num_experts) of other gates are used instead of its own gate's, if given."""
        return self.experts.mix(x, self.gate(x) if logits is None else logits)[0]
