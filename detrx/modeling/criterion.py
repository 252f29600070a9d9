"""Supervision as data: which predictions are compared with the ground truth, by which assignment and losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from detrx.d2.utils import comm

from .losses import Loss
from .matching import Assigner, Assignment, assign_all
from .queries import Predictions
from .targets import Targets


class Supervision:
    """How one group of predictions is supervised.

    Args:
        group: name of the predictions: "main", "encoder", or the group of a method.
        assigner: pairs predictions with ground truth, for every layer by itself.
        losses: what is summed over these pairs.
        suffix: ends the names of the losses, after the number of the layer (the last layer has none).
        class_agnostic: all ground truth is of class 0 ("an object").
        weight: factor of all losses.
    """

    def __init__(
        self,
        group: str,
        assigner: Assigner,
        losses: Sequence[Loss],
        suffix: str = "",
        class_agnostic: bool = False,
        weight: float = 1.0,
    ):
        self.group = group
        self.assigner = assigner
        self.losses = tuple(losses)
        self.suffix = suffix
        self.class_agnostic = class_agnostic
        self.weight = weight

    def name(self, loss: Loss, layer: int, num_layers: int) -> str:
        return loss.name + (f"_{layer}" if layer < num_layers - 1 else "") + self.suffix


class Criterion:
    """Computes all losses of a training step; all layers of a group at once, and one assignment call for all groups.

    Losses are divided by the number of ground-truth boxes in the batch, averaged over processes, at least 1.
    """

    def __init__(self, supervisions: Sequence[Supervision]):
        self.supervisions = tuple(supervisions)

    def __call__(
        self, predictions: dict[str, Predictions], targets: Targets, extra: Sequence[Supervision] = ()
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: by group name.
            extra: supervisions of this step beside the criterion's own, those of the methods.

        Returns:
            weighted scalar losses; their plain sum is what is minimised.
        """
        supervisions = (*self.supervisions, *extra)
        assignments = self.assign(predictions, targets, extra)
        num_boxes = mean_over_processes(sum(targets.counts), targets.boxes.device).clamp(min=1)
        losses: dict[str, Tensor] = {}
        for supervision, pairs in zip(supervisions, assignments, strict=True):
            group = predictions[supervision.group]
            truth = self.truth(supervision, targets)
            for loss in supervision.losses:
                values = loss(group, truth, pairs) * (loss.weight * supervision.weight / num_boxes)
                for layer, value in enumerate(values.unbind()):
                    losses[supervision.name(loss, layer, len(values))] = value
        return losses

    def assign(
        self, predictions: dict[str, Predictions], targets: Targets, extra: Sequence[Supervision] = ()
    ) -> list[Assignment]:
        """The pairs of each supervision, in their order, the extra ones last."""
        supervisions = (*self.supervisions, *extra)
        for supervision in supervisions:
            if supervision.group not in predictions:
                raise KeyError(
                    f"supervision of group {supervision.group!r}, but the model predicts for {sorted(predictions)}"
                )
        return assign_all([(s.assigner, predictions[s.group], self.truth(s, targets)) for s in supervisions])

    @staticmethod
    def truth(supervision: Supervision, targets: Targets) -> Targets:
        return targets.class_agnostic() if supervision.class_agnostic else targets


def mean_over_processes(count: int, device: torch.device) -> Tensor:
    """Average of a number over all processes, as a float32 scalar."""
    value = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(value)
        value /= comm.get_world_size()
    return value
