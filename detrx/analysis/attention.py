"""Where the queries of a detector look: maps of dense cross-attention, and sampling points of deformable attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.layers import Recorded, recording
from detrx.modeling import Criterion, DecoderLayer, DetectionTransformer, MultiScaleTokens, Predictions, Targets
from detrx.modeling.cross_attention import DeformableCrossAttention, check_part

__all__ = ["Chosen", "Look", "SamplingPoints", "choose_queries", "look_at"]


@dataclass(frozen=True)
class SamplingPoints:
    """Where N queries sample with M heads; places are xy in [0, 1] of the image.

    Attributes:
        places: (M, N, P, 2) points of all levels.
        weights: (M, N, P).
        reference: (N, 2) around which the points are.
    """

    places: Tensor
    weights: Tensor
    reference: Tensor


@dataclass(frozen=True)
class Look:
    """What the N main queries attend to with M heads in one decoder layer, for one image.

    Attributes:
        predictions: of all layers, on the model's device; everything else is on the host.
        scores: (N, K) of the last layer, in [0, 1].
        boxes: (N, 4) of the last layer, cxcywh in [0, 1].
        attention: maps (M, N, H, W), the weights of the cells of the image; or the points of deformable attention.
    """

    predictions: Predictions
    scores: Tensor
    boxes: Tensor
    attention: Tensor | SamplingPoints

    @property
    def num_heads(self) -> int:
        """Number M of attention heads."""
        return len(self.attention.weights if isinstance(self.attention, SamplingPoints) else self.attention)


@dataclass(frozen=True)
class Chosen:
    """A query to draw, and the index of the ground-truth box for which it was chosen; None if for none."""

    query: int
    truth: int | None = None


@torch.no_grad()
def look_at(model: DetectionTransformer, inputs: dict[str, Any], layer: int = -1, part: str = "spatial") -> Look:
    """What the main queries of a model in evaluation mode attend to.

    Args:
        inputs: an element of the model's input.
        layer: index of the decoder layer; from the end if negative.
        part: of dense attention: "spatial", the comparison of places alone (the spatial attention of Conditional DETR),
            "content", that of contents, or "full", as in the model. Deformable attention has no parts.

    Raises:
        ValueError: there is no such layer or part, or not all queries attend in this layer.
    """
    check_part(part)
    layers = model.decoder.layers
    if not -len(layers) <= layer < len(layers):
        raise InvalidInputError(f"layer {layer} does not exist: the model has {len(layers)} decoder layers")
    if type(layers[layer]) is not DecoderLayer:
        raise InvalidInputError(
            f"decoder layer {layer} is a {type(layers[layer]).__name__}, in which not all queries attend to the image"
        )
    cross_attn = layers[layer].cross_attn
    recorded: list[Recorded[Any]] = [cross_attn]
    memory = model.encode(model.preprocess([inputs]))
    main, _ = model.query_source(memory)
    with recording(recorded) as (calls,):
        predictions = model.decoder([main], memory)["main"]
    (call,) = calls
    scores, boxes = model.postprocess.scores(predictions)[0].cpu(), predictions.boxes[-1, 0].float().cpu()
    if predictions.padding is not None:
        scores = scores.masked_fill(predictions.padding[0, :, None].cpu(), -1.0)
    if isinstance(cross_attn, DeformableCrossAttention):
        places, weights = (each[0].transpose(0, 1).flatten(2, 3).cpu() for each in call.points())
        reference = call.reference[0, :, 0, :2].float().cpu()
        return Look(predictions, scores, boxes, SamplingPoints(places, weights, reference))
    maps = on_finest_grid(cross_attn.part_of(call, memory, part).weights()[0], memory)
    return Look(predictions, scores, boxes, maps.cpu())


def on_finest_grid(weights: Tensor, memory: MultiScaleTokens) -> Tensor:
    """Weights (M, N, S) of the tokens -> (M, N, H, W) on the grid of the first level; those of several levels, whose
    cells have different sizes, are added up cell by cell."""
    grid = memory.shapes[0]
    total = weights.new_zeros(*weights.shape[:2], *grid)
    for part, (h, w) in zip(weights.split([h * w for h, w in memory.shapes], dim=2), memory.shapes, strict=True):
        share = part.unflatten(2, (h, w)) * (h * w / (grid[0] * grid[1]))
        total += share if (h, w) == grid else F.interpolate(share, size=grid)
    return total


def choose_queries(
    model: DetectionTransformer, look: Look, inputs: dict[str, Any], queries: str | Sequence[int], most: int = 3
) -> list[Chosen]:
    """The queries to draw.

    Args:
        inputs: with the ground truth as `instances`, if it chooses the queries.
        queries: "truth", those that the model's assignment of the last layer gives to the ground-truth boxes; "best",
            those with the highest scores; or their indices.
        most: how many at most, unless their indices are given.

    Raises:
        ValueError: there are no such queries.
    """
    count = len(look.scores)
    if queries == "best":
        order = look.scores.amax(1).argsort(descending=True, stable=True)
        return [Chosen(query) for query in order[:most].tolist()]
    if queries == "truth":
        return matched_queries(model, look, inputs)[:most]
    if isinstance(queries, str):
        raise InvalidInputError(f'queries must be "truth", "best" or indices, got {queries!r}')
    if missing := [query for query in queries if not 0 <= query < count]:
        raise InvalidInputError(f"queries {missing} do not exist: the model has {count} queries")
    return [Chosen(query) for query in queries]


@torch.no_grad()
def matched_queries(model: DetectionTransformer, look: Look, inputs: dict[str, Any]) -> list[Chosen]:
    """For each ground-truth box, the query that is assigned to it in the last layer; of several, that with the highest
    score for its class. Boxes without a query are left out."""
    if model.criterion is None:
        raise InvalidInputError("the model has no criterion, which assigns the ground truth to queries")
    supervision = model.criterion.of_last_layer("main")
    targets = Targets.from_instances([inputs["instances"]], [inputs.get("image_id")], model.device)
    if not targets.counts[0]:
        return []
    last = look.predictions.of_layers(slice(-1, None))
    pairs = supervision.assigner.assign(last, Criterion.truth(supervision, targets))
    labels = inputs["instances"].gt_classes.tolist()
    best: dict[int, int] = {}
    for query, truth in zip(pairs.query.tolist(), pairs.truth.tolist(), strict=True):
        label = labels[truth]
        if truth not in best or look.scores[query, label] > look.scores[best[truth], label]:
            best[truth] = query
    return [Chosen(best[truth], truth) for truth in sorted(best)]
