"""Quality-aware assignment: in intermediate decoder layers, the quality of predictions decides how many a box takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.modeling import (
    CrossEntropyLoss,
    DetectionTransformer,
    MatchingQuality,
    Method,
    Predictions,
    Supervision,
    Targets,
    VarifocalLoss,
)
from detrx.modeling.losses import Loss
from detrx.modeling.matching import Assigner, Assignment, assign_all


class QualityAwareAssigner(Assigner):
    """One-to-many assignment by the quality s = IoU - gamma * (score of the ground truth's class).

    With S, the sum of its `top_k` best s, a ground truth takes its best max(ceil(S / tau), minimum) predictions (the
    paper's Eq. 7, whose tau is 1), or max(minimum, round(S / tau)) (an article about the paper), and at most `top_k`.
    A prediction that several ground truths want goes to the one with the largest s; the others get no replacement.

    Args:
        top_k: number of candidate predictions per ground truth.
        gamma: weight of the score; s is large for predictions with a good box and a low score.
        tau: divisor of the sum.
        positives: how S / tau becomes a number of predictions: "paper", the next integer from it upwards, or "article",
            the nearest one (ties to even).
        minimum: minimum number of predictions per ground truth.
    """

    POSITIVES = {"paper": np.ceil, "article": np.rint}

    def __init__(
        self, top_k: int = 4, gamma: float = 0.4, tau: float = 1.0, positives: str = "paper", minimum: int = 1
    ):
        if not 1 <= minimum <= top_k:
            raise InvalidInputError(
                f"minimum must be at least 1 and at most top_k, got minimum {minimum} and top_k {top_k}"
            )
        if tau <= 0:
            raise InvalidInputError(f"tau must be positive, got {tau}")
        if positives not in self.POSITIVES:
            raise InvalidInputError(f"positives must be one of {tuple(self.POSITIVES)}, got {positives!r}")
        self.top_k, self.tau, self.minimum = top_k, tau, minimum
        self.round = self.POSITIVES[positives]
        self.quality = MatchingQuality(-gamma, 1.0)

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        return self.quality(predictions, targets)

    def solve(self, cost: np.ndarray, targets: Targets) -> np.ndarray:
        if not sum(targets.counts):
            return np.empty((0, 4), dtype=np.int64)
        k = min(self.top_k, cost.shape[2])
        best = np.argpartition(-cost, k - 1, axis=2)[:, :, :k]
        quality = np.take_along_axis(cost, best, axis=2)
        order = (-quality).argsort(axis=2, kind="stable")
        best, quality = (np.take_along_axis(each, order, axis=2) for each in (best, quality))
        real = np.arange(cost.shape[3]) < np.array(targets.counts)[:, None]
        taken = (np.arange(k)[:, None] < self.positives(quality.sum(2))[:, :, None]) & real[:, None]
        # s of each prediction for the ground truths that want it, -inf for the others.
        wanted = np.full_like(cost, -np.inf)
        np.put_along_axis(wanted, best, np.where(taken, quality, -np.inf), axis=2)
        layer, image, query = np.nonzero(wanted.max(3) > -np.inf)
        return np.stack([layer, image, query, wanted[layer, image, query].argmax(1)], axis=1)

    def positives(self, total: np.ndarray) -> np.ndarray:
        """Numbers of predictions for the given sums of s."""
        return self.round(total / self.tau).clip(self.minimum, self.top_k).astype(np.int64)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return assign_all([(self, predictions, targets)])[0]


def slice_of(layers: Any) -> slice:
    """The slice between two indices, each of which may be None.

    Raises:
        ValueError: `layers` are not two whole numbers or None.
    """
    whole = isinstance(layers, Sequence) and [each for each in layers if each is None or type(each) is int]
    if not whole or len(whole) != 2 or len(layers) != 2:
        raise InvalidInputError(f"layers must be two of whole numbers and None, such as [null, -1], got {layers!r}")
    return slice(*whole)


class QualityAwareAssignment(Method):
    """Quality-aware assignment of the main queries in some decoder layers; the others keep their assigner and losses.

    Args:
        top_k, gamma, tau, positives, minimum: arguments of the `QualityAwareAssigner`.
        layers: slice of the decoder layers with this assignment; (None, -1) is all but the last.
        losses: losses of these layers; None: the detector's losses, but with a `VarifocalLoss` of the same weight as
            class loss.
    """

    def __init__(
        self,
        top_k: int = 4,
        gamma: float = 0.4,
        tau: float = 1.0,
        positives: str = "paper",
        minimum: int = 1,
        layers: tuple[int | None, int | None] = (None, -1),
        losses: Sequence[Loss] | None = None,
    ):
        super().__init__()
        self.assigner = QualityAwareAssigner(top_k, gamma, tau, positives, minimum)
        self.chosen = slice_of(layers)
        self.losses = None if losses is None else tuple(losses)

    def attach(self, model: DetectionTransformer) -> None:
        self.num_layers = len(model.decoder.layers)
        self.layers = range(self.num_layers)[self.chosen]
        if not self.layers:
            raise InvalidInputError(
                f"QualityAwareAssignment: layers ({self.chosen.start}, {self.chosen.stop}) are none of the decoder's "
                f"{self.num_layers}"
            )
        if model.criterion is None:
            return
        main = [supervision for supervision in model.criterion.supervisions if supervision.group == "main"]
        if any(isinstance(loss, CrossEntropyLoss) for supervision in main for loss in supervision.losses):
            raise InvalidInputError(
                "QualityAwareAssignment needs a detector with a sigmoid for each class, but this one has a softmax"
            )
        self.usual = tuple(supervision.assigner for supervision in main)

    def supervise(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        result = []
        for supervision in supervisions:
            if supervision.group != "main":
                result.append(supervision)
                continue
            if not any(supervision.assigner is assigner for assigner in self.usual):
                raise InvalidInputError(
                    "QualityAwareAssignment and another method of model.methods both change how the main queries are "
                    f"assigned (the other one to {type(supervision.assigner).__name__}): leave one out"
                )
            before, rest = supervision.split(self.layers.start, self.num_layers)
            losses = self.losses_of(supervision)
            for each in rest:
                inside, after = each.split(self.layers.stop, self.num_layers)
                changed = [part.replace(assigner=self.assigner, losses=losses, repeats=1) for part in inside]
                before = [*before, *changed, *after]
            result += before
        return result

    def losses_of(self, supervision: Supervision) -> tuple[Loss, ...]:
        """The losses of a supervision when its assignment is quality-aware."""
        if self.losses is not None:
            return self.losses
        return tuple(
            VarifocalLoss(loss.weight)
            if loss.name == VarifocalLoss.name and not isinstance(loss, VarifocalLoss)
            else loss
            for loss in supervision.losses
        )
