"""Supervision as data: the predictions to supervise, their assignment to the ground truth, and the losses."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from detrx.d2.utils import comm
from detrx.errors import InvalidInputError, UnknownNameError

from .losses import Loss
from .matching import Assigner, Assignment, assign_all
from .queries import Predictions
from .targets import Targets


class Supervision:
    """How one group of predictions is supervised.

    Args:
        group: name of the predictions: "main", "encoder", or the group of a method.
        assigner: pairs predictions with ground truth, separately for every layer.
        losses: losses of these pairs.
        suffix: suffix of the loss names, in addition to the number of the layer.
        numbering: position of the layer number in the name: "before" or "after" the suffix, both without a number for
            the last layer; or "all", after the suffix, also for the last layer.
        layers: slice of the supervised layers: (None, -1) is all but the last, (-1, None) the last. Other layers may
            have another supervision.
        class_agnostic: set all ground-truth classes to 0 ("object").
        weight: factor of all losses.
        repeats: factor of the number of boxes by which losses are divided. Use the number of queries that the assigner
            gives to each box, so that the loss per query is as large as with one-to-one assignment.
    """

    NUMBERING = ("before", "after", "all")

    def __init__(
        self,
        group: str,
        assigner: Assigner,
        losses: Sequence[Loss],
        suffix: str = "",
        numbering: str = "before",
        layers: tuple[int | None, int | None] = (None, None),
        class_agnostic: bool = False,
        weight: float = 1.0,
        repeats: int = 1,
    ):
        if numbering not in self.NUMBERING:
            raise InvalidInputError(f"numbering must be one of {self.NUMBERING}, got {numbering!r}")
        self.group = group
        self.assigner = assigner
        self.losses = tuple(losses)
        self.suffix = suffix
        self.numbering = numbering
        self.layers = slice(*layers)
        self.class_agnostic = class_agnostic
        self.weight = weight
        self.repeats = repeats

    def replace(self, **attributes: object) -> Supervision:
        """A copy with some attributes changed."""
        changed = copy.copy(self)
        vars(changed).update(attributes)
        return changed

    def numbers(self, num_layers: int) -> range:
        """Indices of the supervised layers, of `num_layers` layers."""
        return range(num_layers)[self.layers]

    def split(self, layer: int, num_layers: int) -> tuple[list[Supervision], list[Supervision]]:
        """Split into supervisions of the layers before `layer` and of the other ones, of `num_layers`. A list is empty
        if it would have no layers."""
        layers = self.numbers(num_layers)
        before, after = slice(layers.start, min(layers.stop, layer)), slice(max(layers.start, layer), layers.stop)
        parts = [[self.replace(layers=part)] if part.start < part.stop else [] for part in (before, after)]
        return parts[0], parts[1]

    def select(self, predictions: Predictions) -> Predictions:
        """The predictions of the supervised layers."""
        return predictions.of_layers(self.layers)

    def name(self, loss: Loss, layer: int, num_layers: int) -> str:
        number = f"_{layer}" if self.numbering == "all" or layer < num_layers - 1 else ""
        return loss.name + (number + self.suffix if self.numbering == "before" else self.suffix + number)


class Criterion:
    """Computes all losses of a training step: all layers of a group at once, with one assignment call for all groups.

    Losses are divided by the number of ground-truth boxes in the batch, averaged over processes, times `repeats` of the
    supervision, and at least 1. Losses that are already means are not divided.
    """

    def __init__(self, supervisions: Sequence[Supervision]):
        self.supervisions = tuple(supervisions)

    def __call__(
        self, predictions: dict[str, Predictions], targets: Targets, supervisions: Sequence[Supervision] | None = None
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: by group name.
            supervisions: supervisions of this step (default: the criterion's own); methods may add or change some.

        Returns:
            weighted scalar losses; training minimises their sum.

        Raises:
            ValueError: two supervisions have a loss of the same name.
        """
        supervisions = self.supervisions if supervisions is None else supervisions
        assignments = self.assign(predictions, targets, supervisions)
        num_boxes = mean_over_processes(sum(targets.counts), targets.boxes.device)
        losses: dict[str, Tensor] = {}
        for supervision, pairs in zip(supervisions, assignments, strict=True):
            num_layers = len(predictions[supervision.group].logits)
            group = supervision.select(predictions[supervision.group])
            truth = self.truth(supervision, targets)
            divisor = (num_boxes * supervision.repeats).clamp(min=1)
            for loss in supervision.losses:
                values = loss(group, truth, pairs) * (loss.weight * supervision.weight)
                values = values if loss.is_mean else values / divisor
                for layer, value in zip(supervision.numbers(num_layers), values.unbind(), strict=True):
                    name = supervision.name(loss, layer, num_layers)
                    if name in losses:
                        raise InvalidInputError(
                            f"two supervisions give a loss {name!r}: set a different suffix for one of them"
                        )
                    losses[name] = value
        return losses

    def assign(
        self, predictions: dict[str, Predictions], targets: Targets, supervisions: Sequence[Supervision] | None = None
    ) -> list[Assignment]:
        """The pairs of each supervision (default: the criterion's own). Layer indices start at its first layer."""
        supervisions = self.supervisions if supervisions is None else supervisions
        for supervision in supervisions:
            if supervision.group not in predictions:
                raise UnknownNameError(
                    f"supervision of group {supervision.group!r}, but the model has predictions for "
                    f"{sorted(predictions)} only"
                )
        return assign_all([(s.assigner, s.select(predictions[s.group]), self.truth(s, targets)) for s in supervisions])

    def of_last_layer(self, group: str) -> Supervision:
        """The supervision of the last layer of a group.

        Raises:
            ValueError: the last layer is not supervised.
        """
        for supervision in self.supervisions:
            if supervision.group == group and supervision.layers.stop is None:
                return supervision
        raise InvalidInputError(f"the criterion has no supervision of the last layer of group {group!r}")

    @staticmethod
    def truth(supervision: Supervision, targets: Targets) -> Targets:
        return targets.class_agnostic() if supervision.class_agnostic else targets


def mean_over_processes(count: int, device: torch.device) -> Tensor:
    """Average of a number over all processes, as a float32 scalar."""
    value = torch.full((), float(count), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(value)
        value /= comm.get_world_size()
    return value
