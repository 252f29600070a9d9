"""Denoising: the decoder learns to restore ground truth from noised copies of it (arXiv 2203.01305, 2203.03605)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cxcywh_to_xyxy, inverse_sigmoid, to_device, xyxy_to_cxcywh

from .criterion import Supervision
from .learned_queries import LabelEmbedding
from .losses import Loss
from .matching import KnownPairs
from .methods import Branch, Method, Step
from .queries import QueryGroup
from .targets import Targets

if TYPE_CHECKING:
    from .meta_arch import DetectionTransformer  # it runs its methods, and a method gets its detector

PositionEmbedding: TypeAlias = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]
"""References -> position and content of queries."""


@dataclass(frozen=True)
class Slots:
    """Which of the P denoising queries of B images hold the M noised boxes.

    A denoising group consists of `copies` blocks. Each block has G queries, where G is the largest number of boxes in
    an image; in images with fewer boxes the last queries of each block are unused. The M boxes are ordered by group,
    block, image and box.

    Attributes:
        shape: (B, P).
        num_groups, copies: number of groups, and of blocks in each.
        image, slot, truth: (M,) int64; for each noised box its image, its query in [0, P), and the box it is made from.
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
        """Slots for `num_groups` groups; a block has at least one query, even if no image has a box."""
        device = targets.boxes.device
        width, blocks = max(1, *targets.counts), num_groups * copies
        counts = torch.tensor(targets.counts)
        image = torch.arange(len(counts)).repeat_interleave(counts)
        truth = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
        block = torch.arange(blocks).repeat_interleave(len(image))
        image, truth = image.repeat(blocks), truth.repeat(blocks)
        image, slot, truth = to_device(torch.stack([image, block * width + truth, truth]), device)
        group = torch.arange(blocks * width, device=device) // (copies * width)
        blocked = group[:, None] != group
        return cls((len(counts), blocks * width), num_groups, copies, image, slot, truth, blocked)

    def of_block(self, values: Tensor, block: int) -> Tensor:
        """The rows of (M, ...) values that belong to block number `block` of their group."""
        per_block = len(values) // (self.num_groups * self.copies)
        grouped = values.view(self.num_groups, self.copies, per_block, *values.shape[1:])
        return grouped[:, block].flatten(0, 1)

    def fill(self, values: Tensor) -> Tensor:
        """(M, n) values of the noised boxes -> (B, P, n), zero for unused queries."""
        return values.new_zeros(*self.shape, values.shape[-1]).index_put((self.image, self.slot), values)

    def pairs(self, block: int) -> KnownPairs:
        """Pairs of the queries in block number `block` of each group with the boxes they are made from."""
        return KnownPairs(*(self.of_block(index, block) for index in (self.image, self.slot, self.truth)))


class Denoising(Method):
    """Base of the denoising methods. Adds the query group "denoising", which sees the main group and is not seen by it.

    Args:
        label_noise, box_noise: strength of the noise, in the units of the subclass; 0: none.
        losses: of the denoising queries; None: those of the last layer of the main group.
    """

    copies: int
    """Queries in a group for each box. The first of them has to restore the box."""

    def __init__(self, label_noise: float, box_noise: float, losses: Sequence[Loss] | None = None):
        super().__init__()
        self.label_noise, self.box_noise = label_noise, box_noise
        self.losses = None if losses is None else tuple(losses)

    def attach(self, model: DetectionTransformer) -> None:
        kind, source = type(self).__name__, type(model.query_source).__name__
        if getattr(model.query_source, "reference_dims", None) != 4:
            raise InvalidInputError(
                f"{kind} needs a detector whose queries have reference boxes (4-d); those of {source} have none. "
                "Use EncoderProposals (two-stage) or another source of boxes"
            )
        if model.decoder.position is None and _position_embedding(model) is None:
            raise InvalidInputError(
                f"{kind} has to embed the positions of noised boxes, but the decoder has no `position`, and {source} "
                "has no `embed`"
            )
        if self.losses is None and model.criterion is not None:
            self.losses = model.criterion.of_last_layer("main").losses

    @abstractmethod
    def num_groups(self, most_boxes: int) -> int:
        """Number of denoising groups, given the largest number of boxes in an image (at least 1)."""

    @abstractmethod
    def noise_labels(self, labels: Tensor) -> Tensor:
        """Noised labels; `labels` as in `noise`."""

    @abstractmethod
    def noise_boxes(self, boxes: Tensor) -> Tensor:
        """Noised boxes; `boxes` as in `noise`."""

    @abstractmethod
    def embed(self, labels: Tensor, step: Step) -> Tensor:
        """(M,) labels -> (M, C) content of the queries."""

    def noise(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Noised labels and boxes, of the same shapes.

        Args:
            labels: (groups, copies, boxes) int64; the boxes of all images, one after the other.
            boxes: (groups, copies, boxes, 4) cxcywh in [0, 1] of the unpadded image.
        """
        labels = self.noise_labels(labels) if self.label_noise else labels
        return labels, self.noise_boxes(boxes) if self.box_noise else boxes

    @torch.compiler.disable  # random numbers on the host, and shapes that depend on data
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
        # The reference of an unused query has the logit 0: it is the box (.5, .5, .5, .5).
        logit = slots.fill(inverse_sigmoid(boxes.flatten(0, 2), step.model.decoder.inverse_sigmoid_eps))
        reference = logit.sigmoid()
        pos = None
        if step.main.pos is not None and (embed := _position_embedding(step.model)) is not None:
            pos, _ = embed(reference)
        group = QueryGroup("denoising", content, pos, reference, blocked=slots.blocked, sees=("main",))
        # Without any box the queries still run, with weight 0: DistributedDataParallel needs a gradient for every
        # parameter.
        weight = 1 / num_groups if sum(targets.counts) else 0.0
        assert self.losses is not None  # see `attach`
        supervision = Supervision(
            "denoising", slots.pairs(0), self.losses, suffix="_dn", numbering="after", weight=weight
        )
        return [Branch(group, [supervision])]


class ContrastiveDenoising(Denoising):
    """DINO's denoising (arXiv 2203.03605): for each box, one query has to restore it and a noisier one to reject it.

    Args:
        num_queries: queries that restore boxes, in all groups together; there is always at least one group. As many
            queries reject theirs.
        label_noise: twice the probability that a label is replaced by one drawn from all classes.
        box_noise: how far each of the four sides moves, in halves of the box's size: up to this for boxes to restore,
            one to two times this for boxes to reject.
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
        super().__init__(label_noise, box_noise, losses)
        if num_queries < 1:
            raise InvalidInputError(
                f"num_queries must be at least 1, got {num_queries}; without denoising, leave it out"
            )
        if not 0 <= label_noise <= 2:
            raise InvalidInputError(f"label_noise must be in [0, 2], got {label_noise}")
        if box_noise < 0:
            raise InvalidInputError(f"box_noise must not be negative, got {box_noise}")
        self.num_queries = num_queries

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        head = model.decoder.heads.class_heads[0]
        self.label_embed = nn.Embedding(head.out_features, head.in_features)

    def num_groups(self, most_boxes: int) -> int:
        return max(1, self.num_queries // most_boxes)

    def noise_labels(self, labels: Tensor) -> Tensor:
        return replace_labels(labels, 0.5 * self.label_noise, self.label_embed.num_embeddings)

    def noise_boxes(self, boxes: Tensor) -> Tensor:
        sign = torch.randint(2, boxes.shape) * 2.0 - 1.0
        distance = torch.rand(boxes.shape)
        distance[:, 1] += 1.0
        moved = to_device(sign * distance * self.box_noise, boxes.device) * (boxes[..., 2:] / 2).repeat(1, 1, 1, 2)
        return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moved).clamp(0, 1))

    def embed(self, labels: Tensor, step: Step) -> Tensor:
        return self.label_embed(labels)


class GroupDenoising(Denoising):
    """DN-DETR's denoising (arXiv 2203.01305): several groups, each with all boxes.

    Labels are embedded by the `LabelEmbedding` of the query source, whose own queries have the label "no object"
    (DN-DETR); if it has none, by one of the method (a two-stage DN-Deformable-DETR).

    Args:
        num_groups: number of noised copies of every box.
        label_noise: probability that a label is replaced by one drawn from all classes and "no object".
        box_noise: largest shift of centres, in halves of the box's size, and largest relative change of the size.
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
        super().__init__(label_noise, box_noise, losses)
        if num_groups < 1:
            raise InvalidInputError(f"num_groups must be at least 1, got {num_groups}; without denoising, leave it out")
        if not 0 <= label_noise <= 1 or not 0 <= box_noise <= 1:
            raise InvalidInputError(f"label_noise and box_noise must be in [0, 1], got {label_noise} and {box_noise}")
        self.groups = num_groups

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        embedding = getattr(model.query_source, "label_embedding", None)
        if embedding is None:
            head = model.decoder.heads.class_heads[0]
            self.label_embedding = embedding = LabelEmbedding(head.out_features, head.in_features)
        self.num_labels = embedding.num_classes + 1

    def num_groups(self, most_boxes: int) -> int:
        return self.groups

    def noise_labels(self, labels: Tensor) -> Tensor:
        return replace_labels(labels, self.label_noise, self.num_labels)

    def noise_boxes(self, boxes: Tensor) -> Tensor:
        size = boxes[..., 2:]
        moved = to_device(torch.rand(boxes.shape) * 2 - 1, boxes.device) * torch.cat([size / 2, size], dim=-1)
        return (boxes + moved * self.box_noise).clamp(0, 1)

    def embed(self, labels: Tensor, step: Step) -> Tensor:
        embedding = getattr(step.model.query_source, "label_embedding", None)
        return (self.label_embedding if embedding is None else embedding)(labels)


def _position_embedding(model: DetectionTransformer) -> PositionEmbedding | None:
    return getattr(model.query_source, "embed", None)


def replace_labels(labels: Tensor, probability: float, num_labels: int) -> Tensor:
    """Replace each label, with this probability, by one drawn from all.

    Labels are drawn on the host, because their number is random: reading it from a device would make the host wait.
    """
    replaced = torch.rand(labels.shape) < probability
    drawn = torch.full(labels.shape, -1)
    drawn[replaced] = torch.randint(num_labels, (int(replaced.sum()),))
    drawn = to_device(drawn, labels.device)
    return torch.where(drawn < 0, labels, drawn)
