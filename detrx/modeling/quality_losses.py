"""Losses that depend on the quality of matched predictions: Align-DETR (arXiv 2304.07527)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.layers import cxcywh_to_xyxy, iou_xyxy

from .losses import Loss, PairWeight, class_cells, matched_boxes
from .matching import Assignment
from .queries import Predictions
from .targets import Targets


@dataclass(frozen=True)
class AlignedQuality:
    """Quality of matched pairs, t = score^alpha * IoU^(1 - alpha).

    Args:
        alpha: 1 is the score alone, 0 the IoU alone.
        minimum: lower bound of t.
    """

    alpha: float = 0.25
    minimum: float = 0.01

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        """Quality (M,) of the pairs."""
        labels = targets.labels[pairs.image, pairs.truth]
        score = predictions.logits[pairs.layer, pairs.image, pairs.query, labels].float().sigmoid()
        predicted, truth = matched_boxes(predictions, targets, pairs)
        iou, _ = iou_xyxy(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
        return (score**self.alpha * iou ** (1 - self.alpha)).clamp(min=self.minimum)


@dataclass(frozen=True)
class RankWeight(PairWeight):
    """exp(-rank / tau), with the rank of a prediction among those of the same ground truth; the best has rank 0.

    Args:
        tau: temperature.
        quality: quality by which predictions are ranked.
    """

    tau: float = 1.5
    quality: AlignedQuality = field(default_factory=AlignedQuality)

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        quality = self.quality(predictions, targets, pairs)
        (num_images, num_boxes) = targets.labels.shape
        bag = (pairs.layer * num_images + pairs.image) * num_boxes + pairs.truth
        return torch.exp(-rank_in_bag(quality, bag) / self.tau)


def rank_in_bag(values: Tensor, bag: Tensor) -> Tensor:
    """Rank (M,) of each value (M,) among those of the same bag (M,); the largest has rank 0.

    Equal values are ranked in their order.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[bag[order].argsort(stable=True)]
    ordered = bag[order]
    place = torch.arange(len(bag), device=bag.device)
    return torch.empty_like(bag).index_copy(0, order, place - torch.searchsorted(ordered, ordered))


class IABCELoss(Loss):
    """Binary cross-entropy whose target is the quality of the matched box, to align score and IoU.

    Positives: -t log p - (1 - t) log(1 - p) with the quality t; all others: -p^gamma log(1 - p).

    Args:
        quality: computes t.
        pair_weight: computes a factor of t.
        last_box_only: if a query is matched with several boxes of a class, use the target of the last box instead of
            the best one, as in the published Mr. DETR.
    """

    name = "loss_class"

    def __init__(
        self,
        weight: float = 1.0,
        gamma: float = 2.0,
        quality: AlignedQuality | None = None,
        pair_weight: PairWeight | None = None,
        last_box_only: bool = False,
    ):
        super().__init__(weight)
        self.last_box_only = last_box_only
        self.gamma = gamma
        self.quality = AlignedQuality() if quality is None else quality
        self.pair_weight = pair_weight

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        logits = predictions.logits.float()
        t = self.quality(predictions, targets, pairs)
        if self.pair_weight is not None:
            t = t * self.pair_weight(predictions, targets, pairs)
        # If a query is matched with several boxes of a class, the best one defines the target.
        flat = class_cells(pairs, targets, logits.shape)
        if self.last_box_only:
            last = flat.new_zeros(logits.numel()).scatter_reduce(0, flat, pairs.truth, "amax")[flat]
            t = t * (pairs.truth == last)
        positive = torch.zeros_like(logits).flatten().scatter_reduce(0, flat, t, "amax").view_as(logits)
        negative = torch.where(positive > 0, 1 - positive, logits.sigmoid() ** self.gamma)
        return -(positive * F.logsigmoid(logits) + negative * F.logsigmoid(-logits)).sum((1, 2, 3))
