"""Query routing (QR-DETR): a router per decoder layer, and the exit heads that teach it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.modeling import Branch, DecoderLayer, Denoising, DetectionTransformer, Method, Predictions, Step, Supervision
from detrx.modeling.methods import log_storage

from .routed_layer import FFN_ON, REGROUP, WRAPPED, Routed, RoutedDecoderLayer
from .router import QueryRouter

EEQR = ("full", "self_attn", "cross_attn")
"""The paper's best scheme: the three kinds of routing by turns."""


class QueryRouting(Method):
    """Each decoder layer gets a router, which lets some of the queries pass it, or a part of it, and leads the others
    around. The routers are parts of the detector's layers; the exit heads exist in training only.

    The choice of a router has no gradient. So it has exit heads, a class and a box head like those of its layer, which
    read sigma * q of the main queries and are supervised as the layer's predictions are; from them the router learns.

    Args:
        scheme: "eeqr" (full, self-attention, cross-attention by turns), one of "self_attn", "cross_attn" and "full" for
            all layers, or a list of these, which the layers take by turns.
        regroup: "scatter" or "concat", see `RoutedDecoderLayer`.
        ffn: "processed" or "all", see `RoutedDecoderLayer`.
        exit_weight: factor of the losses of the exit heads.
        detach_queries: the losses of the exit heads reach the routers only, not the queries that they read.
        add_pos: routers and exit heads read content + position of the queries, instead of content alone. Some
            detectors start without content; there the first router could not tell queries apart.
        pass_column: the column of W_R that scores passing.
        router: takes the place of the learned router in every layer, as a copy (`FixedRouter`).
        period: iterations between two entries in the log, which wait for the device.
    """

    def __init__(
        self,
        scheme: str | Sequence[str] = "eeqr",
        regroup: str = "scatter",
        ffn: str = "processed",
        exit_weight: float = 1.0,
        detach_queries: bool = True,
        add_pos: bool = True,
        pass_column: int = 1,
        router: nn.Module | None = None,
        period: int = 20,
    ):
        super().__init__()
        schemes = EEQR if scheme == "eeqr" else (scheme,) if isinstance(scheme, str) else tuple(scheme)
        if not schemes or set(schemes) - set(WRAPPED):
            raise InvalidInputError(
                f'scheme must be "eeqr", one of {", ".join(WRAPPED)}, or a list of these, got {scheme!r}'
            )
        for key, value, known in (("regroup", regroup, REGROUP), ("ffn", ffn, FFN_ON)):
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
        self.pass_column, self.period = pass_column, period
        self.fixed = (router,)  # no submodule: it belongs to the layers
        self.class_heads = nn.ModuleList()
        self.box_heads = nn.ModuleList()

    def attach(self, model: DetectionTransformer) -> None:
        if self.regroup == "concat" and any(isinstance(method, Denoising) for method in model.methods):
            raise InvalidInputError(
                'QueryRouting with regroup="concat" changes the order of queries, and does not go together with '
                "denoising, which knows its queries by their place"
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
            layers[index] = RoutedDecoderLayer(layer, router, wrapped, self.regroup, self.ffn, self.add_pos)
            self.class_heads.append(copy.deepcopy(heads.class_heads[index % len(heads.class_heads)]))
            self.box_heads.append(copy.deepcopy(heads.box_heads[index % len(heads.box_heads)]))

    def after_decoder(self, step: Step, predictions: Mapping[str, Predictions]) -> list[Branch]:
        """The predictions of the exit heads, "exit"."""
        decoder = step.model.decoder
        logits, boxes, counts = [], [], []
        for layer, class_head, box_head in zip(decoder.layers, self.class_heads, self.box_heads, strict=True):
            routed, layer.routed = layer.routed, None
            counts.append(routed.counts)
            x, reference = self.exit(layer, routed)
            logits.append(class_head(x))
            boxes.append(decoder.shift(reference, box_head(x)))
        self.log(counts)
        exits = Predictions(torch.stack(logits), torch.stack(boxes))
        return [Branch(None, self.exit_supervisions(step.model), {"exit": exits})]

    def exit(self, layer: RoutedDecoderLayer, routed: Routed) -> tuple[Tensor, Tensor | None]:
        """What the exit heads of a layer read: sigma * q (B, N, C), and the references (B, N, 4 or 2) that their boxes
        start from, those that the queries have at the router."""
        q, reference = layer.read(routed.queries), routed.queries.reference
        if self.detach_queries:
            q, reference = q.detach(), None if reference is None else reference.detach()
        _, sigma = layer.router(q)
        return sigma[..., None] * q, reference

    def exit_supervisions(self, model: DetectionTransformer) -> list[Supervision]:
        """Those of the main group, for the exit heads."""
        return [
            each.replace(
                group="exit",
                suffix=f"{each.suffix}_exit",
                numbering="all",
                weight=each.weight * self.exit_weight,
            )
            for each in model.criterion.supervisions
            if each.group == "main"
        ]

    def log(self, counts: list[Tensor]) -> None:
        """How many queries of an image pass each router, on average."""
        storage = log_storage(self.period)
        if storage is None:
            return
        means = torch.stack(counts).float().mean(1).tolist()
        for index, value in enumerate(means):
            storage.put_scalar(f"routing/passing_{index}", value, smoothing_hint=False)
        storage.put_scalar("routing/passing", sum(means) / len(means), smoothing_hint=False)
