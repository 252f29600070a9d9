"""Query routing (QR-DETR): a router per decoder layer, and the exit heads that train it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cast_like
from detrx.modeling import Branch, DecoderLayer, Denoising, DetectionTransformer, Method, Predictions, Step, Supervision
from detrx.modeling.methods import log_storage

from .routed_layer import DEFAULT_FFN, FFN_ON, REGROUP, ROUTER_READS, WRAPPED, Routed, RoutedDecoderLayer
from .router import QueryRouter

EEQR = ("full", "self_attn", "cross_attn")
"""The paper's best scheme: the three kinds of routing in turn."""


class QueryRouting(Method):
    """Adds a router to each decoder layer, which lets some queries pass the layer, or a part of it; the others bypass
    it. Queries that the cross-attention of a layer does not work on keep their references and predictions. The routers
    are part of the detector's layers; the exit heads exist in training only.

    The decision of a router has no gradient. Therefore it has exit heads: copies of the class and box heads of its
    layer, and of its quality head if the detector predicts the quality of its predictions. They read sigma * q of the
    main queries, are supervised like the layer's predictions in the same step, and train the router.

    Args:
        scheme: "eeqr" (full, self-attention, cross-attention in turn); one of "self_attn", "cross_attn" and "full" for
            all layers; or a list of these, which the layers use in turn.
        regroup: "scatter" or "concat", see `RoutedDecoderLayer`.
        ffn: "processed", "modified" or "all", see `RoutedDecoderLayer`.
        exit_weight: factor of the losses of the exit heads.
        detach_queries: do not propagate gradients of the exit losses to the queries, only to the routers.
        add_pos: routers and exit heads read content + position of the queries, instead of content alone. Some
            detectors start without content, so their first router could not distinguish queries by content.
        pass_column: the column of W_R that scores passing.
        router: replaces the learned router in every layer, as a copy (`FixedRouter`).
        period: iterations between log entries; each makes the host wait for the device.
        router_reads: "layer" or "block", see `RoutedDecoderLayer`. Exit heads read the same queries.
    """

    def __init__(
        self,
        scheme: str | Sequence[str] = "eeqr",
        regroup: str = "scatter",
        ffn: str = DEFAULT_FFN,
        exit_weight: float = 1.0,
        detach_queries: bool = True,
        add_pos: bool = True,
        pass_column: int = 1,
        router: nn.Module | None = None,
        period: int = 20,
        router_reads: str = "layer",
    ):
        super().__init__()
        schemes = EEQR if scheme == "eeqr" else (scheme,) if isinstance(scheme, str) else tuple(scheme)
        if not schemes or set(schemes) - set(WRAPPED):
            raise InvalidInputError(
                f'scheme must be "eeqr", one of {", ".join(WRAPPED)}, or a list of these, got {scheme!r}'
            )
        for key, value, known in (
            ("regroup", regroup, REGROUP),
            ("ffn", ffn, FFN_ON),
            ("router_reads", router_reads, ROUTER_READS),
        ):
            if value not in known:
                raise InvalidInputError(f"{key} must be one of {', '.join(known)}, got {value!r}")
        if exit_weight < 0:
            raise InvalidInputError(f"exit_weight must not be negative, got {exit_weight}")
        if pass_column not in (0, 1):
            raise InvalidInputError(f"pass_column must be 0 or 1, got {pass_column!r}")
        if not isinstance(period, int) or period < 1:
            raise InvalidInputError(f"period must be 1 or more iterations, got {period!r}")
        self.schemes, self.regroup, self.ffn = schemes, regroup, ffn
        self.exit_weight, self.detach_queries, self.add_pos = exit_weight, detach_queries, add_pos
        self.pass_column, self.period, self.router_reads = pass_column, period, router_reads
        self.fixed = (router,)  # not a submodule: it belongs to the layers
        self.class_heads = nn.ModuleList()
        self.box_heads = nn.ModuleList()
        self.quality_heads = nn.ModuleList()  # empty if the detector has none

    def attach(self, model: DetectionTransformer) -> None:
        if self.regroup == "concat" and any(isinstance(method, Denoising) for method in model.methods):
            raise InvalidInputError(
                'QueryRouting with regroup="concat" changes the order of queries, so it cannot be combined with '
                "denoising, which identifies its queries by their index"
            )
        (fixed,) = self.fixed
        layers, heads = model.decoder.layers, model.decoder.heads
        for index, layer in enumerate(layers):
            if type(layer) is not DecoderLayer:
                raise InvalidInputError(
                    f"QueryRouting wraps a DecoderLayer, but decoder layer {index} is a {type(layer).__name__}"
                )
            embed_dim = layer.norm1.normalized_shape[0]
            router = QueryRouter(embed_dim, self.pass_column) if fixed is None else copy.deepcopy(fixed)
            wrapped = self.schemes[index % len(self.schemes)]
            layers[index] = RoutedDecoderLayer(
                layer, router, wrapped, self.regroup, self.ffn, self.add_pos, self.router_reads
            )
            for copies, of_layers in (
                (self.class_heads, heads.class_heads),
                (self.box_heads, heads.box_heads),
                (self.quality_heads, heads.quality_heads),
            ):
                if of_layers is not None:
                    copies.append(copy.deepcopy(of_layers[index % len(of_layers)]))

    def after_decoder(self, step: Step, predictions: Mapping[str, Predictions]) -> list[Branch]:
        """The predictions "exit" of the exit heads, and their supervisions."""
        decoder = step.model.decoder
        logits, boxes, quality, counts = [], [], [], []
        for index, layer in enumerate(decoder.layers):
            routed, layer.routed = layer.routed, None
            counts.append(routed.counts)
            x, reference = self.exit(layer, routed)
            logits.append(self.class_heads[index](x))
            boxes.append(decoder.shift(reference, self.box_heads[index](x)))
            if self.quality_heads:
                quality.append(self.quality_heads[index](x))
        self.log(counts)
        exits = Predictions(torch.stack(logits), torch.stack(boxes), quality=torch.stack(quality) if quality else None)
        return [Branch(None, self.exit_supervisions(step.supervisions), {"exit": exits})]

    def exit(self, layer: RoutedDecoderLayer, routed: Routed) -> tuple[Tensor, Tensor | None]:
        """Inputs of the exit heads of a layer: sigma * q (B, N, C), and the references (B, N, 4 or 2) of the queries at
        the router, which their boxes are relative to."""
        q, reference = layer.read(routed.queries), routed.queries.reference
        if self.detach_queries:
            q, reference = q.detach(), None if reference is None else reference.detach()
        _, sigma = layer.router(q)
        return cast_like(sigma[..., None] * q, q), reference

    def exit_supervisions(self, supervisions: Sequence[Supervision]) -> list[Supervision]:
        """Those of the main group among the detector's supervisions of a step, applied to the exit heads."""
        return [
            each.replace(
                group="exit",
                suffix=f"{each.suffix}_exit",
                numbering="all",
                weight=each.weight * self.exit_weight,
            )
            for each in supervisions
            if each.group == "main"
        ]

    def log(self, counts: list[Tensor]) -> None:
        """Log the mean number of queries per image that pass each router."""
        storage = log_storage(self.period)
        if storage is None:
            return
        means = torch.stack(counts).float().mean(1).tolist()
        for index, value in enumerate(means):
            storage.put_scalar(f"routing/passing_{index}", value, smoothing_hint=False)
        storage.put_scalar("routing/passing", sum(means) / len(means), smoothing_hint=False)
