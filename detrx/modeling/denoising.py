"""Denoising: queries made from noised ground truth, which the decoder has to restore (arXiv 2203.01305, 2203.03605)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cxcywh_to_xyxy, inverse_sigmoid, to_device, xyxy_to_cxcywh

from .criterion import Supervision
from .losses import Loss
from .matching import KnownPairs
from .methods import Branch, Method, Step
from .queries import QueryGroup
from .targets import Targets

if TYPE_CHECKING:
    from .meta_arch import DetectionTransformer


@dataclass(frozen=True)
class Slots:
    """Places of M noised boxes among the P denoising queries of B images.

    A denoising group is `copies` blocks of G queries, one for each box of the image with the most boxes; in images with
    fewer the last queries of each block stay unused. The M boxes are ordered by group, block, image, box.

    Attributes:
        shape: B and P.
        num_groups, copies: groups, and blocks in each.
        image, slot, truth: (M,) int64, the image of each noised box, its place in [0, P), the box it is made from.
        blocked: (P, P) bool, True between different groups.
    """

    shape: tuple[int, int]
    num_groups: int
    copies: int
    image: Tensor
    slot: Tensor
    truth: Tensor
    blocked: Tensor

    @classmethod
    def arrange(cls, targets: Targets, num_groups: int, copies: int) -> Slots:
        """Slots for `num_groups` groups; a block has at least one query, even if there is no box at all."""
        device = targets.boxes.device
        width, blocks = max(1, *targets.counts), num_groups * copies
        counts = torch.tensor(targets.counts)
        image = torch.arange(len(counts)).repeat_interleave(counts)
        truth = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
        block = torch.arange(blocks).repeat_interleave(len(image))
        image, truth = image.repeat(blocks), truth.repeat(blocks)
        index = to_device(torch.stack([image, block * width + truth, truth]), device)
        group = torch.arange(blocks * width, device=device) // (copies * width)
        return cls((len(counts), blocks * width), num_groups, copies, *index, group[:, None] != group)

    def of_block(self, values: Tensor, block: int) -> Tensor:
        """Those of (M, ...) values that are in the given block of any group."""
        per_block = len(values) // (self.num_groups * self.copies)
        grouped = values.view(self.num_groups, self.copies, per_block, *values.shape[1:])
        return grouped[:, block].flatten(0, 1)

    def fill(self, values: Tensor) -> Tensor:
        """(M, n) values of the noised boxes -> (B, P, n), 0 where a query is unused."""
        return values.new_zeros(*self.shape, values.shape[-1]).index_put((self.image, self.slot), values)

    def pairs(self, block: int) -> KnownPairs:
        """The queries of one block of every group, each with the box it is made from."""
        return KnownPairs(*(self.of_block(index, block) for index in (self.image, self.slot, self.truth)))


class Denoising(Method):
    """What all ways of denoising share: the query group "denoising", which sees the main group and is not seen by it.

    Args:
        losses: of the denoising queries; None: those of the last layer of the main group.
    """

    copies: int
    """How many queries a group has for each box; the box is to be restored from the first."""

    def __init__(self, losses: Sequence[Loss] | None = None):
        super().__init__()
        self.losses = None if losses is None else tuple(losses)

    def attach(self, model: DetectionTransformer) -> None:
        kind, source = type(self).__name__, type(model.query_source).__name__
        if getattr(model.query_source, "reference_dims", None) != 4:
            raise InvalidInputError(
                f"{kind} needs a detector whose queries have reference boxes (4-d); those of {source} have none. "
                "Use EncoderProposals (two-stage) or another source of boxes"
            )
        if model.decoder.position is None and not hasattr(model.query_source, "embed"):
            raise InvalidInputError(
                f"{kind} has to embed the positions of noised boxes, but the decoder has no `position` and {source} no "
                "`embed`"
            )
        if self.losses is None and model.criterion is not None:
            self.losses = model.criterion.of_last_layer("main").losses

    @abstractmethod
    def num_groups(self, most_boxes: int) -> int:
        """Denoising groups, given the number of boxes (at least 1) of the image with the most."""

    @abstractmethod
    def noise(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Noised labels and boxes.

        Args:
            labels: (groups, copies, boxes) int64; the boxes of all images, one after the other.
            boxes: (groups, copies, boxes, 4) cxcywh in [0, 1] of the unpadded image.
        """

    @abstractmethod
    def embed(self, labels: Tensor, step: Step) -> Tensor:
        """(M,) labels -> (M, C) content of the queries."""

    def branches(self, step: Step) -> list[Branch]:
        targets = step.targets
        num_groups = self.num_groups(max(1, *targets.counts))
        slots = Slots.arrange(targets, num_groups, self.copies)
        shape = (num_groups, self.copies, sum(targets.counts))
        labels, boxes = self.noise(
            targets.labels[slots.image, slots.truth].view(shape),
            targets.boxes[slots.image, slots.truth].view(*shape, 4),
        )
        content = slots.fill(self.embed(labels.flatten(), step))
        # An unused query has the logit 0 for its reference, which is the box (.5, .5, .5, .5).
        logit = slots.fill(inverse_sigmoid(boxes.flatten(0, 2), step.model.decoder.inverse_sigmoid_eps))
        reference = logit.sigmoid()
        pos = None if step.main.pos is None else step.model.query_source.embed(reference)[0]
        group = QueryGroup("denoising", content, pos, reference, blocked=slots.blocked, sees=("main",))
        # Without any box the queries still run, for nothing: in distributed training every parameter needs a gradient.
        weight = 1 / num_groups if sum(targets.counts) else 0.0
        supervision = Supervision(
            "denoising", slots.pairs(0), self.losses, suffix="_dn", numbering="after", weight=weight
        )
        return [Branch(group, [supervision])]


class ContrastiveDenoising(Denoising):
    """DINO's denoising (arXiv 2203.03605): beside each box to be restored a worse one that is to be rejected.

    Args:
        num_queries: boxes to be restored, over all groups; an image with more boxes has one group. As many are to be
            rejected.
        label_noise: half of it is the probability that a label is replaced by one drawn from all classes.
        box_noise: how far each of the four sides moves, in halves of the box's size: up to this for boxes to be
            restored, one to two times this for boxes to be rejected.
        losses: of the denoising queries; None: those of the last layer of the main group.
    """

    copies = 2

    def __init__(
        self,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        losses: Sequence[Loss] | None = None,
    ):
        super().__init__(losses)
        if num_queries < 1:
            raise InvalidInputError(
                f"num_queries must be at least 1, got {num_queries}; without denoising, leave it out"
            )
        if not 0 <= label_noise <= 2:
            raise InvalidInputError(f"label_noise must be in [0, 2], got {label_noise}")
        if box_noise < 0:
            raise InvalidInputError(f"box_noise must not be negative, got {box_noise}")
        self.num_queries, self.label_noise, self.box_noise = num_queries, label_noise, box_noise

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        head = model.decoder.heads.class_heads[0]
        self.label_embed = nn.Embedding(head.out_features, head.in_features)

    def num_groups(self, most_boxes: int) -> int:
        return max(1, self.num_queries // most_boxes)

    def noise(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        if self.label_noise:
            labels = replace_labels(labels, 0.5 * self.label_noise, self.label_embed.num_embeddings)
        if self.box_noise:
            sign = torch.randint(2, boxes.shape) * 2.0 - 1.0
            distance = torch.rand(boxes.shape)
            distance[:, 1] += 1.0
            moved = to_device(sign * distance * self.box_noise, boxes.device) * (boxes[..., 2:] / 2).repeat(1, 1, 1, 2)
            boxes = xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moved).clamp(0, 1))
        return labels, boxes

    def embed(self, labels: Tensor, step: Step) -> Tensor:
        return self.label_embed(labels)


class GroupDenoising(Denoising):
    """DN-DETR's denoising (arXiv 2203.01305): several groups, each with all boxes.

    Labels are embedded as by the query source, whose own queries have the label "no object" (`LabelEmbedding`).

    Args:
        num_groups: how often every box is noised.
        label_noise: probability that a label is replaced by one drawn from all classes and "no object".
        box_noise: how far centres move, at most, in halves of the box's size, and by how much of it sizes change.
        losses: of the denoising queries; None: those of the last layer of the main group.
    """

    copies = 1

    def __init__(
        self,
        num_groups: int = 5,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
        losses: Sequence[Loss] | None = None,
    ):
        super().__init__(losses)
        if num_groups < 1:
            raise InvalidInputError(f"num_groups must be at least 1, got {num_groups}; without denoising, leave it out")
        if not 0 <= label_noise <= 1 or not 0 <= box_noise <= 1:
            raise InvalidInputError(f"label_noise and box_noise must be in [0, 1], got {label_noise} and {box_noise}")
        self.groups, self.label_noise, self.box_noise = num_groups, label_noise, box_noise

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        embedding = getattr(model.query_source, "label_embedding", None)
        if embedding is None:
            raise InvalidInputError(
                f"GroupDenoising needs a query source with a label_embedding, such as AnchorQueries; "
                f"{type(model.query_source).__name__} has none"
            )
        self.num_labels = embedding.num_classes + 1

    def num_groups(self, most_boxes: int) -> int:
        return self.groups

    def noise(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        if self.label_noise:
            labels = replace_labels(labels, self.label_noise, self.num_labels)
        if self.box_noise:
            size = boxes[..., 2:]
            moved = to_device(torch.rand(boxes.shape) * 2 - 1, boxes.device) * torch.cat([size / 2, size], dim=-1)
            boxes = (boxes + moved * self.box_noise).clamp(0, 1)
        return labels, boxes

    def embed(self, labels: Tensor, step: Step) -> Tensor:
        return step.model.query_source.label_embedding(labels)


def replace_labels(labels: Tensor, probability: float, num_labels: int) -> Tensor:
    """Each label, with this probability, becomes one drawn from all.

    Drawn on the host: the number of new labels is random, and a device would have to be asked for it.
    """
    replaced = torch.rand(labels.shape) < probability
    drawn = torch.full(labels.shape, -1)
    drawn[replaced] = torch.randint(num_labels, (int(replaced.sum()),))
    drawn = to_device(drawn, labels.device)
    return torch.where(drawn < 0, labels, drawn)
