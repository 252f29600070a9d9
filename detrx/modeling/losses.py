"""Set-prediction losses: for each decoder layer a sum over matched pairs, or over all queries for classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.layers import cxcywh_to_xyxy, iou_xyxy

from .matching import Assignment
from .queries import Predictions
from .targets import Targets


def matched_boxes(predictions: Predictions, targets: Targets, pairs: Assignment) -> tuple[Tensor, Tensor]:
    """Predicted and true boxes (M, 4) cxcywh of the matched pairs."""
    predicted = predictions.boxes[pairs.layer, pairs.image, pairs.query].float()
    return predicted, targets.boxes[pairs.image, pairs.truth]


def sum_by_layer(values: Tensor, pairs: Assignment, predictions: Predictions) -> Tensor:
    """Per-pair values (M,) -> (T,)."""
    return values.new_zeros(len(predictions.boxes)).index_add(0, pairs.layer, values)


def last_truth(pairs: Assignment, predictions: Predictions) -> Tensor:
    """For each pair, the last ground truth (M,) with which its query is matched."""
    _, num_images, num_queries = predictions.logits.shape[:3]
    query = (pairs.layer * num_images + pairs.image) * num_queries + pairs.query
    last = pairs.truth.new_zeros(predictions.logits.shape[:3].numel())
    return last.scatter_reduce(0, query, pairs.truth, "amax")[query]


def class_cells(pairs: Assignment, targets: Targets, shape: torch.Size) -> Tensor:
    """For each pair, the index (M,) of its query and class in a flattened tensor of `shape` (T, B, N, K).

    If a query is matched with several boxes of a class, the index is the same for all of them.
    """
    _, num_images, num_queries, num_classes = shape
    query = (pairs.layer * num_images + pairs.image) * num_queries + pairs.query
    return query * num_classes + targets.labels[pairs.image, pairs.truth]


def varifocal(logits: Tensor, quality: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
    """Varifocal loss (arXiv 2008.13367) of each element, for targets `quality` and bool `positive` of the same shape.

    Positives: q * BCE(p, q) with q the quality; all others: alpha * p^gamma * BCE(p, 0).
    """
    weight = torch.where(positive, quality, alpha * logits.detach().sigmoid() ** gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


class PairWeight(ABC):
    """Weights of the matched pairs in a loss."""

    @abstractmethod
    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        """(M,) weights, without gradient."""


class Loss(ABC):
    """
    Args:
        weight: factor of the loss in the total loss.
    """

    name: str
    """Name in the loss dictionary, without the suffix for layer and group."""
    is_mean: bool = False
    """Whether the loss is already a mean, which is not divided by the number of boxes."""

    def __init__(self, weight: float):
        self.weight = weight

    @abstractmethod
    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        """(T,) unweighted loss of each layer. The criterion divides it by the number of boxes unless `is_mean`."""


class FocalLoss(Loss):
    """Sigmoid focal loss over all queries and classes (arXiv 1708.02002).

    Args:
        last_class_only: if a query is matched with several boxes, it is a positive only for the class of the last one,
            as in the published code of Mr. DETR. Otherwise it is a positive for each of their classes.
    """

    name = "loss_class"

    def __init__(self, weight: float = 1.0, alpha: float = 0.25, gamma: float = 2.0, last_class_only: bool = False):
        super().__init__(weight)
        self.alpha, self.gamma, self.last_class_only = alpha, gamma, last_class_only

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        logits = predictions.logits.float()
        if self.last_class_only:
            pairs = replace(pairs, truth=last_truth(pairs, predictions))
        cells = class_cells(pairs, targets, logits.shape)
        target = logits.new_zeros(logits.numel()).index_fill_(0, cells, 1.0).view_as(logits)
        p = logits.sigmoid()
        wrong = p * (1 - target) + (1 - p) * target
        alpha = self.alpha * target + (1 - self.alpha) * (1 - target)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (alpha * wrong**self.gamma * cross_entropy).sum((1, 2, 3))


class VarifocalLoss(Loss):
    """Class loss whose target is the IoU with the matched box, so that scores rank by localisation (arXiv 2008.13367).

    Positives: q * BCE(p, q) with q the IoU; all others: alpha * p^gamma * BCE(p, 0).
    """

    name = "loss_class"

    def __init__(self, weight: float = 1.0, alpha: float = 0.75, gamma: float = 2.0):
        super().__init__(weight)
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        logits = predictions.logits.float()
        predicted, truth = matched_boxes(predictions, targets, pairs)
        iou, _ = iou_xyxy(cxcywh_to_xyxy(predicted.detach()), cxcywh_to_xyxy(truth))
        cells = class_cells(pairs, targets, logits.shape)
        quality = logits.new_zeros(logits.numel()).index_put_((cells,), iou.clamp(min=0)).view_as(logits)
        positive = torch.zeros_like(quality, dtype=torch.bool).flatten().index_fill_(0, cells, True).view_as(logits)
        return varifocal(logits, quality, positive, self.alpha, self.gamma).sum((1, 2, 3))


class BoxLoss(Loss):
    """A loss of the boxes of matched pairs, summed over the pairs of each layer.

    Args:
        pair_weight: weights of the pairs in the sum; None: 1.
    """

    def __init__(self, weight: float, pair_weight: PairWeight | None = None):
        super().__init__(weight)
        self.pair_weight = pair_weight

    @abstractmethod
    def of_pairs(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Boxes (M, 4) cxcywh, predicted and true -> (M,) loss of each pair."""

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        values = self.of_pairs(*matched_boxes(predictions, targets, pairs))
        if self.pair_weight is not None:
            values = values * self.pair_weight(predictions, targets, pairs)
        return sum_by_layer(values, pairs, predictions)


class L1Loss(BoxLoss):
    """L1 distance between the cxcywh of the matched boxes."""

    name = "loss_bbox"

    def __init__(self, weight: float = 5.0, pair_weight: PairWeight | None = None):
        super().__init__(weight, pair_weight)

    def of_pairs(self, predicted: Tensor, truth: Tensor) -> Tensor:
        return (predicted - truth).abs().sum(-1)


class GIoULoss(BoxLoss):
    """1 - GIoU of the matched boxes (arXiv 1902.09630)."""

    name = "loss_giou"

    def __init__(self, weight: float = 2.0, pair_weight: PairWeight | None = None):
        super().__init__(weight, pair_weight)

    def of_pairs(self, predicted: Tensor, truth: Tensor) -> Tensor:
        _, giou = iou_xyxy(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
        return 1 - giou
