"""Assignment of predictions to ground truth: costs, the Hungarian matcher, and top-k assignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrx.errors import InvalidInputError, NonFinitePredictionError
from detrx.layers import cxcywh_to_xyxy, iou_xyxy, to_device, to_host

from .queries import Predictions
from .targets import Targets


@dataclass(frozen=True)
class Assignment:
    """M pairs of prediction and ground truth, as index tensors (M,) into layers T, images B, queries N and boxes G."""

    layer: Tensor
    image: Tensor
    query: Tensor
    truth: Tensor


@dataclass(frozen=True)
class MatchingCost:
    """Weighted sum of focal class cost, L1 distance of cxcywh and -GIoU (Deformable DETR's matching cost).

    Args:
        class_weight, l1_weight, giou_weight: weights of the three terms; a term of weight 0 is not computed.
        alpha, gamma: parameters of the focal cost.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Tensor:
        """(T, B, N, G) float32 cost of every pair; columns beyond an image's boxes are meaningless."""
        boxes, truth = predictions.boxes.float(), targets.boxes[None, :, None]
        cost = boxes.new_zeros(*boxes.shape[:3], targets.labels.shape[1])
        if self.class_weight:
            labels = targets.labels[None, :, None].expand(*cost.shape)
            cost += self.class_weight * self.class_cost(predictions.logits.float()).gather(-1, labels)
        if self.l1_weight:
            cost += self.l1_weight * torch.cdist(boxes, targets.boxes, p=1)
        if self.giou_weight:
            _, giou = iou_xyxy(cxcywh_to_xyxy(boxes)[..., None, :], cxcywh_to_xyxy(truth))
            cost -= self.giou_weight * giou
        return cost

    def class_cost(self, logits: Tensor) -> Tensor:
        """(..., K) logits -> (..., K) cost of each class."""
        p = logits.sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative


class Assigner(ABC):
    """Pairs predictions with ground truth in two steps, so that a training step waits for the device only once.

    An assigner that works on the host returns its costs from `host_cost` and receives them in `solve`. An assigner that
    works on the device, with an unknown number of pairs, returns a mask from `choose`; the number of pairs is copied to
    the host together with the costs of the others. Any other assigner returns None from both and implements `assign`.
    """

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        """Costs (T, B, N, G) that `solve` needs on the host, or None."""
        return None

    def solve(self, cost: np.ndarray, targets: Targets) -> np.ndarray:
        """Costs (T, B, N, G) on the host -> (M, 4) int64 rows of layer, image, query, truth."""
        raise NotImplementedError

    def choose(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        """(T, B, N, G) bool, True for pairs, or None."""
        return None

    @abstractmethod
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Pairs of all layers and images."""


@dataclass(frozen=True)
class MatchingQuality:
    """score_weight * (score of the ground truth's class) + iou_weight * IoU, for every pair."""

    score_weight: float = 0.3
    iou_weight: float = 0.7

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Tensor:
        """(T, B, N, G) float32; columns beyond an image's boxes are meaningless."""
        boxes, truth = predictions.boxes.float(), targets.boxes[None, :, None]
        iou, _ = iou_xyxy(cxcywh_to_xyxy(boxes)[..., None, :], cxcywh_to_xyxy(truth))
        labels = targets.labels[None, :, None].expand(iou.shape)
        return self.score_weight * predictions.logits.float().sigmoid().gather(-1, labels) + self.iou_weight * iou


class HungarianMatcher(Assigner):
    """Assignment of minimal total cost, separately for each layer and image (DETR, arXiv 2005.12872).

    Args:
        copies: number of predictions that each ground truth takes; 1 is one-to-one.
        max_share: largest fraction of the queries that is assigned in an image. If an image has too many boxes, each
            gets fewer copies, but at least one. None: only the number of queries is a limit.
        carry_limit: reproduce the published Align-DETR: the reduced number of copies of an image, which can then be 0,
            also applies to all later images of the batch.
    """

    def __init__(self, cost: MatchingCost, copies: int = 1, max_share: float | None = None, carry_limit: bool = False):
        if copies < 1:
            raise InvalidInputError(f"copies must be at least 1, got {copies}")
        self.cost = cost
        self.copies = copies
        self.max_share = max_share
        self.carry_limit = carry_limit

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        return self.cost(predictions, targets)

    def solve(self, cost: np.ndarray, targets: Targets) -> np.ndarray:
        rows = [np.empty((0, 4), dtype=np.int64)]
        copies = self.copies_of(targets.counts, cost.shape[2])
        for image, count in enumerate(targets.counts):
            for layer in range(len(cost)):
                query, column = linear_sum_assignment(np.tile(cost[layer, image, :, :count], copies[image]))
                truth = column % count if count else column
                rows.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, truth], axis=1))
        return np.concatenate(rows)

    def copies_of(self, counts: Sequence[int], num_queries: int) -> list[int]:
        """Number of copies of the ground truth, for each image."""
        result, limit = [], self.copies
        for count in counts:
            copies = self.copies
            if self.max_share is not None and count:
                fitting = int(num_queries * self.max_share / count)
                limit = min(limit, fitting)
                copies = max(1, min(copies, fitting))
            result.append(limit if self.carry_limit else copies)
        return result

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return assign_all([(self, predictions, targets)])[0]


class TopKAssigner(Assigner):
    """One-to-many assignment: every ground truth takes the `k` predictions of lowest cost.

    A prediction that several ground truths want goes to the one with the lowest cost.
    """

    def __init__(self, cost: MatchingCost, k: int = 6):
        if k < 1:
            raise InvalidInputError(f"k must be at least 1, got {k}")
        self.cost = cost
        self.k = k

    @torch.no_grad()
    def choose(self, predictions: Predictions, targets: Targets) -> Tensor:
        cost = self.cost(predictions, targets)
        if cost.shape[-1] == 0:
            return torch.zeros_like(cost, dtype=torch.bool)
        best = cost.topk(min(self.k, cost.shape[2]), dim=2, largest=False).indices
        wanted = torch.zeros_like(cost, dtype=torch.bool).scatter_(2, best, True) & targets.valid[:, None, :]
        cheapest = cost.masked_fill(~wanted, float("inf")).argmin(-1, keepdim=True)
        return wanted & torch.zeros_like(wanted).scatter_(-1, cheapest, True)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return assign_all([(self, predictions, targets)])[0]


class KnownPairs(Assigner):
    """Pairs that are known in advance and the same in all layers, for queries made from the ground truth.

    Args:
        image, query, truth: indices (M,) int64.
    """

    def __init__(self, image: Tensor, query: Tensor, truth: Tensor):
        self.image, self.query, self.truth = image, query, truth

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        num_layers = len(predictions.logits)
        layer = torch.arange(num_layers, device=self.image.device).repeat_interleave(len(self.image))
        return Assignment(layer, *(index.repeat(num_layers) for index in (self.image, self.query, self.truth)))


Request = tuple[Assigner, Predictions, Targets]


@torch.compiler.disable  # it works on the host: a graph of torch.compile ends here
def assign_all(requests: Sequence[Request]) -> list[Assignment]:
    """Compute all assignments of a training step with one synchronising copy to the host: of all costs, and of the
    numbers of pairs that were chosen on the device.

    Raises:
        FloatingPointError: a cost is NaN or infinite because the predictions are; the message names the images.
    """
    costs = [assigner.host_cost(predictions, targets) for assigner, predictions, targets in requests]
    chosen = [
        assigner.choose(predictions, targets) if cost is None else None
        for (assigner, predictions, targets), cost in zip(requests, costs, strict=True)
    ]
    asked = [*(cost for cost in costs if cost is not None), *(mask.sum() for mask in chosen if mask is not None)]
    answers = iter([each.numpy() for each in to_host(asked)])

    solved = []
    for (assigner, _, targets), cost in zip(requests, costs, strict=True):
        if cost is not None:
            values = next(answers)
            check_finite(values, targets)
            solved.append(assigner.solve(values, targets))
    pairs: Iterator[Tensor] = iter(())
    if solved:
        device = asked[0].device
        rows = to_device(torch.from_numpy(np.concatenate(solved)), device)
        pairs = iter(rows.split([len(each) for each in solved]))
    results = []
    for (assigner, predictions, targets), cost, mask in zip(requests, costs, chosen, strict=True):
        if cost is not None:
            results.append(Assignment(*next(pairs).unbind(1)))
        elif mask is not None:
            results.append(chosen_pairs(mask, int(next(answers))))
        else:
            results.append(assigner.assign(predictions, targets))
    return results


def chosen_pairs(mask: Tensor, count: int) -> Assignment:
    """The pairs of a mask (T, B, N, G) with `count` True values, in row-major order.

    As the number is known, the host does not wait for the device, unlike with `nonzero`.
    """
    rank = torch.arange(1, count + 1, device=mask.device)
    place = torch.searchsorted(mask.flatten().cumsum(0), rank)
    index = []
    for size in reversed(mask.shape[1:]):
        index.append(place % size)
        place = place // size
    return Assignment(place, *reversed(index))


def check_finite(cost: np.ndarray, targets: Targets) -> None:
    """Raise FloatingPointError, naming the images, if the cost of a real box is not finite."""
    bad = [
        image_id
        for image, (image_id, count) in enumerate(zip(targets.image_ids, targets.counts, strict=True))
        if not np.isfinite(cost[:, image, :, :count]).all()
    ]
    if bad:
        raise NonFinitePredictionError(
            f"predictions are NaN or infinite for image ids {bad}: training has diverged; "
            "lower the learning rate, clip gradients, or check these images and their boxes"
        )
