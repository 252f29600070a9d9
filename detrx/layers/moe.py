"""A feed-forward network of several experts, of which each token passes through k."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrx.ops import expert_linear, moe_combine, moe_dispatch, moe_route


@dataclass
class ExpertLoad:
    """How the tokens of one call spread over the E experts.

    Attributes:
        counts: (E,) int64, assignments of each expert; they sum to tokens * k.
        mean_probability: (E,) mean over the tokens of the gate's softmax; differentiable.
    """

    counts: Tensor
    mean_probability: Tensor

    def balancing_loss(self) -> Tensor:
        """Load-balancing loss of the Switch Transformer, to be weighted and added: 1 for a uniform load, at most E.

        E times the sum over the experts of (share of the assignments) * (mean probability).
        """
        share = self.counts / self.counts.sum().clamp(min=1)
        return len(self.counts) * (share.to(self.mean_probability.dtype) * self.mean_probability).sum()


torch.export.register_dataclass(ExpertLoad, serialized_type_name="detrx.layers.ExpertLoad")


class MoEFFN(nn.Module):
    """`FFN` with `num_experts` pairs of linear layers: (..., embed_dim) -> (..., embed_dim), without its residual.

    A gate, a linear layer, gives each token a logit per expert; the token's output is the sum of its `top_k` best
    experts' outputs, weighted with their renormalised probabilities. Several gates may share the experts.
    With one expert it is an `FFN`; with `top_k` = `num_experts` the dense mixture.

    Args:
        embed_dim: channels of the tokens.
        hidden_dim: hidden channels of each expert.
        num_experts: at most 256.
        top_k: experts per token, 1 to 8, at most `num_experts`.
        num_gates: gates over the same experts.
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
            raise ValueError(
                f"MoEFFN: top_k is {top_k} and num_experts {num_experts}, "
                "expected 1 <= top_k <= num_experts, top_k <= 8 and num_experts <= 256"
            )
        self.top_k = top_k
        self.gates = nn.ModuleList(nn.Linear(embed_dim, num_experts, bias=False) for _ in range(num_gates))
        self.weight1 = nn.Parameter(torch.empty(num_experts, embed_dim, hidden_dim))
        self.bias1 = nn.Parameter(torch.empty(num_experts, hidden_dim))
        self.weight2 = nn.Parameter(torch.empty(num_experts, hidden_dim, embed_dim))
        self.bias2 = nn.Parameter(torch.empty(num_experts, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert as an `FFN`: Xavier weights, biases uniform within 1 / sqrt(inputs)."""
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
            raise ValueError(f"MoEFFN: gate is {gate}, expected 0 to {len(self.gates) - 1}")
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.gates[gate](tokens)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        weights, _, counts, order = moe_route(logits, self.top_k)
        rows = moe_dispatch(tokens, order, self.top_k)
        hidden = self.dropout(expert_linear(rows, self.weight1, self.bias1, counts, relu=True))
        output = moe_combine(expert_linear(hidden, self.weight2, self.bias2, counts), weights, order)
        # Divided by the number of tokens, at least 1; taken from the counts, as that of the shape may be symbolic.
        mean_probability = self.top_k * logits.softmax(1).sum(0) / counts.sum().clamp(min=1)
        return output.view(x.shape), ExpertLoad(counts, mean_probability)

    def extra_repr(self) -> str:
        experts, embed_dim, hidden_dim = self.weight1.shape
        return f"{embed_dim}, {hidden_dim}, num_experts={experts}, top_k={self.top_k}"
