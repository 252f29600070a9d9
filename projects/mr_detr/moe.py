"""Mixtures of experts of Mr. DETR++: scale-aware encoder layers, and load balancing.

In the decoder, use a `MixtureFFN` as `model.decoder.layer.ffn`, and the route "gate" of `MrDETR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.layers import FFN, ExpertLoad, Gate, MixtureFFN, MultiScaleDeformableAttention
from detrx.modeling import DeformableEncoderLayer, DetectionTransformer, Method, MultiScaleTokens, Predictions, Step
from detrx.modeling.methods import log_storage


class ScaleAwareEncoderLayer(DeformableEncoderLayer):
    """Sends tokens of low-resolution levels through experts, and those of high-resolution levels through the FFN.

    Experts on the many tokens of large maps would be expensive. The paper does not say which levels are low-resolution,
    or whether experts replace the FFN or are added to it; both are our choice, and arguments.

    Args:
        experts: mixture for the levels from `first_level` on.
        first_level: index of the first low-resolution level; 2 means stride 32 if the first level has stride 8. Both
            the FFN and the experts need at least one level.
        combine: "replace": x <- LN(x + E(x)) for low-resolution tokens, which do not pass the FFN; "add": they pass the
            FFN F, which all tokens share, and the experts: x <- LN(x + F(x) + E(x)). Parameters are the same.

    Raises:
        ValueError: no level is left for one of the two, or `combine` is something else.
    """

    def __init__(
        self,
        self_attn: MultiScaleDeformableAttention,
        ffn: FFN,
        experts: MixtureFFN,
        embed_dim: int,
        first_level: int = 2,
        dropout: float = 0.0,
        combine: Literal["replace", "add"] = "replace",
    ):
        super().__init__(self_attn, ffn, embed_dim, dropout)
        if combine not in ("replace", "add"):
            raise InvalidInputError(f"combine must be 'replace' or 'add', got {combine!r}")
        if not 0 < first_level < self_attn.num_levels:
            raise InvalidInputError(
                f"first_level is {first_level}, but of the {self_attn.num_levels} levels of the encoder, at least one "
                "must go through the FFN (first_level >= 1) and at least one through the experts"
            )
        self.experts = experts
        self.first_level = first_level
        self.combine = combine

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.experts.reset_parameters()

    def feed_forward(self, x: Tensor, memory: MultiScaleTokens) -> Tensor:
        high = sum(height * width for height, width in memory.shapes[: self.first_level])
        if self.combine == "replace":
            return torch.cat([self.ffn(x[:, :high]), self.experts(x[:, high:])], dim=1)
        shared = self.ffn(x)
        return torch.cat([shared[:, :high], shared[:, high:] + self.experts(x[:, high:])], dim=1)


class ExpertLoads(Method):
    """Logs the load of the experts of all mixtures of a detector, and adds a load-balancing loss.

    The loss is that of the Switch Transformer (arXiv 2101.03961) for each gate, summed over the layers; a gate with
    equal loads contributes 1. It is our choice: the paper names no loss. All tokens count, including padding, and every
    process balances its own tokens.

    The log has, as `moe/<where>_...`, means over the layers for the mixtures of the encoder, those of the decoder, and
    the gates (or mixtures) of auxiliary routes:
        max_over_mean: assignments of the busiest expert relative to the mean; 1 means equal loads, and the maximum is
            the number of experts divided by top_k.
        effective_experts: the number of evenly used experts with the same entropy of the loads.

    Args:
        balancing_weight: weight of the loss; 0: no loss.
        period: iterations between log entries; each makes the host wait for the device.
    """

    def __init__(self, balancing_weight: float = 1e-2, period: int = 20):
        super().__init__()
        if balancing_weight < 0:
            raise InvalidInputError(f"balancing_weight must not be negative, got {balancing_weight}")
        if period < 1:
            raise InvalidInputError(f"period must be 1 or more iterations, got {period}")
        self.balancing_weight, self.period = balancing_weight, period

    def attach(self, model: DetectionTransformer) -> None:
        if not any(isinstance(module, Gate) for module in model.modules()):
            raise InvalidInputError(
                "ExpertLoads: the detector has no mixture of experts; set model.decoder.layer.ffn to a MixtureFFN or "
                "model.encoder.layer to a ScaleAwareEncoderLayer"
            )

    def extra_losses(self, step: Step, predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
        loads = take_loads(step.model)
        self.log(loads)
        if not self.balancing_weight:
            return {}
        return {
            f"loss_balance_{where}": self.balancing_weight * sum(load.balancing_loss() for load in of_layers)
            for where, of_layers in loads.items()
        }

    def log(self, loads: Mapping[str, list[ExpertLoad]]) -> None:
        storage = log_storage(self.period)
        if storage is None:
            return
        names = [f"moe/{where}_{statistic}" for where in loads for statistic in ("max_over_mean", "effective_experts")]
        values = torch.cat([torch.stack([unevenness(load) for load in each]).mean(0) for each in loads.values()])
        for name, value in zip(names, values.tolist(), strict=True):
            storage.put_scalar(name, value, smoothing_hint=False)


def take_loads(model: DetectionTransformer) -> dict[str, list[ExpertLoad]]:
    """The loads of all gates in the last training step, by location. Resets the loads that the gates have stored."""
    loads: dict[str, list[ExpertLoad]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Gate) and module.load is not None:
            where = name.split(".")[0]
            loads.setdefault("auxiliary" if where == "methods" else where, []).append(module.load)
            module.load = None
    return loads


def unevenness(load: ExpertLoad) -> Tensor:
    """(2,): load of the busiest expert relative to the mean, and the exponential of the entropy of the shares."""
    shares = load.counts / load.counts.sum().clamp(min=1)
    return torch.stack([len(shares) * shares.max(), torch.special.entr(shares).sum().exp()])
