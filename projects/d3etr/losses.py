"""Distillation losses between student and teacher, for the pairs of the assigners in `matching`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from detrx.layers import AttentionInputs, cxcywh_to_xyxy, iou_xyxy
from detrx.modeling import Predictions, Targets
from detrx.modeling.losses import Loss
from detrx.modeling.matching import Assignment

from .matching import SoftClasses


def by_layer(pairs: Assignment, predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Queries of student and teacher (T, B, P) in each pair; all images and layers have the same number P of pairs."""
    layers, images = predictions.logits.shape[:2]
    return pairs.query.view(layers, images, -1), pairs.truth.view(layers, images, -1)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (T, B, P) of (T, B, N, D) -> (T, B, P, D)."""
    return x.take_along_dim(index[..., None], dim=2)


class OfPairs(Loss):
    """Base class of losses of the pairs of an image, whose mean over the images is taken.

    Args:
        weight: weight of the loss.
        teacher: predictions of the compared layers.
        reduction: "mean" over the pairs of an image, or "sum", as Eq. 10 is printed.
    """

    is_mean = True

    def __init__(self, weight: float, teacher: Predictions, reduction: str = "mean"):
        super().__init__(weight)
        self.teacher, self.reduction = teacher, reduction

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        own, other = by_layer(pairs, predictions)
        values = self.compare(predictions, self.teacher, own, other)
        return (values.sum(2) if self.reduction == "sum" else values.mean(2)).mean(1)

    def compare(self, student: Predictions, teacher: Predictions, own: Tensor, other: Tensor) -> Tensor:
        """Loss (T, B, P) between the queries `own` of the student and `other` of the teacher, both (T, B, P)."""
        raise NotImplementedError


class ClassDistillation(OfPairs):
    """Cross entropy with the teacher's soft classes, minus their entropy."""

    name = "loss_distill_class"

    def __init__(self, weight: float, teacher: Predictions, classes: SoftClasses, reduction: str = "mean"):
        super().__init__(weight, teacher, reduction)
        self.classes = classes

    def compare(self, student: Predictions, teacher: Predictions, own: Tensor, other: Tensor) -> Tensor:
        return self.classes.divergence(rows(student.logits, own), rows(teacher.logits, other))


class L1Distillation(OfPairs):
    """L1 distance of the boxes (cxcywh)."""

    name = "loss_distill_bbox"

    def compare(self, student: Predictions, teacher: Predictions, own: Tensor, other: Tensor) -> Tensor:
        return (rows(student.boxes, own).float() - rows(teacher.boxes, other)).abs().sum(-1)


class GIoUDistillation(OfPairs):
    """1 - GIoU of the boxes."""

    name = "loss_distill_giou"

    def compare(self, student: Predictions, teacher: Predictions, own: Tensor, other: Tensor) -> Tensor:
        boxes, other_boxes = rows(student.boxes, own).float(), rows(teacher.boxes, other)
        return 1 - iou_xyxy(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(other_boxes))[1]


class AttentionDistillation(Loss):
    """Mean squared difference of the attention maps of all heads (Eqs. 8 and 9).

    Args:
        weight: weight of the loss.
        name: name of the loss.
        student, teacher: attention inputs of the compared layers.
        between_queries: for self-attention, whose keys are queries: pair the keys like the queries, and compare only
            keys that have a pair.
        keep_maps: keep the maps of all layers for the backward pass; otherwise, recompute them.
    """

    is_mean = True

    def __init__(
        self,
        weight: float,
        name: str,
        student: Sequence[AttentionInputs],
        teacher: Sequence[AttentionInputs],
        between_queries: bool,
        keep_maps: bool = True,
    ):
        super().__init__(weight)
        self.name = name
        self.student, self.teacher = student, teacher
        self.between_queries, self.keep_maps = between_queries, keep_maps

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        values = []
        for inputs in zip(self.student, self.teacher, *by_layer(pairs, predictions), strict=True):
            if self.keep_maps:
                values.append(self.difference(*inputs))
            else:
                values.append(checkpoint(self.difference, *inputs, use_reentrant=False, preserve_rng_state=False))
        return torch.stack(values)

    def difference(self, student: AttentionInputs, teacher: AttentionInputs, own: Tensor, other: Tensor) -> Tensor:
        """Mean squared difference of one layer, for the paired queries `own` and `other` (B, P)."""
        with torch.no_grad():
            target = self.map(teacher, other)
        return (self.map(student, own) - target).square().mean()

    def map(self, inputs: AttentionInputs, order: Tensor) -> Tensor:
        """The map (B, heads, P, M) of the queries `order` (B, P), in this order; (B, heads, P, P) between queries."""
        index = order[:, None, :, None]
        blocked = inputs.blocked
        if blocked is not None and blocked.shape[2] > 1:
            blocked = blocked.take_along_dim(index, dim=2)
        weights = AttentionInputs(inputs.q.take_along_dim(index, dim=2), inputs.k, blocked).weights()
        return weights.take_along_dim(order[:, None, None, :], dim=3) if self.between_queries else weights
