"""The assignments of Mr. DETR (arXiv 2412.10028): one-to-many by votes, and one-to-one by anchors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.modeling import HungarianMatcher, MatchingQuality, Predictions, Targets
from detrx.modeling.matching import Assigner, Assignment, assign_all


class VotingAssigner(Assigner):
    """One-to-many assignment in which predictions vote for ground truth.

    A prediction votes for the ground truth with which it has the best quality, if that is at least `threshold`. The
    best prediction of every ground truth votes even below the threshold. A ground truth with c votes takes its best
    min(c, top_k) predictions, whichever ground truth these voted for. So a ground truth may get no prediction, and a
    prediction may be matched with several ground truths.

    Args:
        quality: quality of every pair of prediction and ground truth.
        top_k: maximum number of predictions per ground truth.
        threshold: minimum quality for a vote.
        max_votes: maximum number of votes in an image; if there are more, this many are drawn at random.
    """

    def __init__(self, quality: MatchingQuality, top_k: int = 6, threshold: float = 0.4, max_votes: int = 225):
        if top_k < 1:
            raise InvalidInputError(f"top_k must be at least 1, got {top_k}")
        if max_votes < 1:
            raise InvalidInputError(f"max_votes must be at least 1, got {max_votes}")
        self.quality, self.top_k, self.threshold, self.max_votes = quality, top_k, threshold, max_votes

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        return self.quality(predictions, targets)

    def solve(self, cost: np.ndarray, targets: Targets) -> np.ndarray:
        rows = [np.empty((0, 4), dtype=np.int64)]
        for image, count in enumerate(targets.counts):
            for layer in range(len(cost) if count else 0):
                query, truth = self.pairs(cost[layer, image, :, :count])
                rows.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, truth], axis=1))
        return np.concatenate(rows)

    def pairs(self, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quality (N, G) in an image with boxes -> indices (M,) of prediction and ground truth of each pair."""
        num_queries, count = quality.shape
        favourite = quality.argmax(1)
        best_of_a_truth = (quality == quality.max(0)).any(1)
        voters = np.flatnonzero((quality.max(1) >= self.threshold) | best_of_a_truth)
        if len(voters) > self.max_votes:
            voters = voters[torch.randperm(len(voters))[: self.max_votes].numpy()]
        k = min(self.top_k, num_queries)
        taken = np.bincount(favourite[voters], minlength=count).clip(max=k)
        best = np.argpartition(-quality, k - 1, axis=0)[:k]
        best = np.take_along_axis(best, np.take_along_axis(-quality, best, axis=0).argsort(0, kind="stable"), axis=0)
        rank, truth = np.nonzero(np.arange(k)[:, None] < taken)
        return best[rank, truth], truth

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return assign_all([(self, predictions, targets)])[0]


class AnchorMatcher(HungarianMatcher):
    """Hungarian matching by the anchors of the encoder's proposals instead of the boxes predicted from them."""

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        if predictions.anchors is None:
            raise InvalidInputError(
                "AnchorMatcher is for proposals of the encoder, but these predictions have no anchors"
            )
        return super().host_cost(replace(predictions, boxes=predictions.anchors), targets)
