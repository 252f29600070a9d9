"""Matching of the student's predictions with the teacher's (MixMatcher)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrx.errors import InvalidInputError, NonFinitePredictionError
from detrx.layers import cxcywh_to_xyxy, iou_xyxy, to_device
from detrx.modeling import KnownPairs, Predictions, Targets
from detrx.modeling.matching import Assigner, Assignment, assign_all

REDUCTIONS = ("sum", "mean")
_LEAST = 1e-7


@dataclass(frozen=True)
class SoftClasses:
    """Comparison of soft classes: binary cross entropy of each class, with the teacher's probabilities as targets.

    Args:
        softmax: the logits belong to a softmax whose last class is "no object", which is compared like the others;
            otherwise, each class has a sigmoid.
        reduction: "sum" or "mean" over the classes.
    """

    softmax: bool = False
    reduction: str = "sum"

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise InvalidInputError(f"class_reduction must be one of {REDUCTIONS}, got {self.reduction!r}")

    def logs(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K) logits -> log p and log (1 - p), float32."""
        logits = logits.float()
        if not self.softmax:
            return F.logsigmoid(logits), F.logsigmoid(-logits)
        log_p = logits.log_softmax(-1)
        return log_p, (1 - log_p.exp()).clamp(min=_LEAST).log()

    def reduce(self, values: Tensor) -> Tensor:
        """(..., K) -> (...)."""
        return values.sum(-1) if self.reduction == "sum" else values.mean(-1)

    def divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Logits (..., K) of both -> (...) cross entropy minus the teacher's entropy. It is 0 where both are equal, and
        has the gradient of the cross entropy."""
        own, other = self.logs(logits), self.logs(teacher)
        p = other[0].exp()
        return self.reduce(p * (other[0] - own[0]) + (1 - p) * (other[1] - own[1]))

    def pairwise(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Logits (..., N, K) and (..., M, K) -> (..., N, M) cross entropy of all pairs."""
        log_p, log_not = self.logs(logits)
        p = self.logs(teacher)[0].exp().transpose(-1, -2)
        total = -(log_p @ p + log_not @ (1 - p))
        return total if self.reduction == "sum" else total / logits.shape[-1]


@dataclass(frozen=True)
class DistillationCost:
    """Eq. 5: weighted sum of the cross entropy of soft classes, L1 of cxcywh, and -GIoU."""

    classes: SoftClasses
    class_weight: float = 20.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0

    @torch.no_grad()
    def __call__(self, student: Predictions, teacher: Predictions) -> Tensor:
        """(T, B, N, M) float32 cost of each pair of N predictions of the student and M of the teacher."""
        costs = []
        # Layer by layer: boxes of all pairs take much memory.
        with torch.autocast(student.boxes.device.type, enabled=False):
            for logits, boxes, other_logits, other_boxes in zip(
                student.logits.float(), student.boxes.float(), teacher.logits, teacher.boxes, strict=True
            ):
                cost = self.class_weight * self.classes.pairwise(logits, other_logits)
                cost += self.l1_weight * torch.cdist(boxes, other_boxes, p=1)
                corners, other_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(other_boxes)
                cost -= self.giou_weight * iou_xyxy(corners[:, :, None], other_corners[:, None])[1]
                costs.append(cost)
        return torch.stack(costs)


def least_cost_pairs(cost: np.ndarray) -> np.ndarray:
    """Eq. 6: costs (T, B, N, M) -> (P, 4) rows of layer, image, student query and teacher query: the pairs of minimal
    total cost in each layer and image."""
    rows = []
    for layer, image in np.ndindex(cost.shape[:2]):
        query, partner = linear_sum_assignment(cost[layer, image])
        rows.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, partner], axis=1))
    return np.concatenate(rows)


class AdaptiveMatcher(Assigner):
    """Adaptive matching: pairs of minimal total cost, separately for each layer and image.

    `truth` of a pair is a query of the teacher. If student and teacher have different numbers of queries, the worst
    ones of the larger set stay unpaired. Pairs are ordered by layer, image and student query.

    Args:
        cost: cost of a pair.
        teacher: predictions (T, B, M, ...) of the matched layers.
    """

    def __init__(self, cost: DistillationCost, teacher: Predictions):
        self.cost, self.teacher = cost, teacher

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        return self.cost(predictions, self.teacher)

    def solve(self, cost: np.ndarray, targets: Targets) -> np.ndarray:
        if bad := [image for image, of_image in enumerate(np.isfinite(cost).all((0, 2, 3))) if not of_image]:
            raise NonFinitePredictionError(
                "predictions of the student or the teacher are NaN or infinite for image ids "
                f"{[targets.image_ids[image] for image in bad]}"
            )
        return least_cost_pairs(cost)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return assign_all([(self, predictions, targets)])[0]


class OfTeacher(Assigner):
    """Assigns the ground truth by the teacher's predictions instead of the student's (Eq. 7).

    Args:
        assigner: assigner to apply to the teacher's predictions.
        teacher: predictions of the assigned layers; None: to be set before an assignment.
    """

    def __init__(self, assigner: Assigner, teacher: Predictions | None = None):
        self.assigner, self.teacher = assigner, teacher

    def host_cost(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        return self.assigner.host_cost(self.teacher, targets)

    def solve(self, cost: np.ndarray, targets: Targets) -> np.ndarray:
        return self.assigner.solve(cost, targets)

    def choose(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        return self.assigner.choose(self.teacher, targets)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return self.assigner.assign(self.teacher, targets)


def in_order(student: Predictions, teacher: Predictions, shuffle: bool = False) -> KnownPairs:
    """Pairs of queries with the same index, or with a random query of the teacher, the same in all layers.

    Args:
        student, teacher: predictions. If one has more queries, its last ones (or random ones) stay unpaired.
        shuffle: draw the teacher's queries at random, for each image.
    """
    _, images, own = student.logits.shape[:3]
    other, device = teacher.logits.shape[2], student.logits.device
    count = min(own, other)
    orders = [torch.randperm(other) if shuffle else torch.arange(other) for _ in range(images)]
    image = torch.arange(images, device=device).repeat_interleave(count)
    query = torch.arange(count, device=device).repeat(images)
    return KnownPairs(image, query, to_device(torch.cat([order[:count] for order in orders]), device))
