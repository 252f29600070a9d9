"""The interface of training methods, which add query groups to a training step or change its supervision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from detrx.d2.structures import ImageList
from detrx.d2.utils import EventStorage, get_event_storage

from .criterion import Supervision
from .queries import Predictions, QueryGroup
from .query_source import QueryRows
from .targets import Targets
from .tokens import MultiScaleTokens

if TYPE_CHECKING:  # a detector runs its methods, and a method gets its detector
    from .meta_arch import DetectionTransformer


@dataclass(frozen=True)
class Step:
    """A training step before the decoder runs.

    Attributes:
        model: the detector.
        memory: the encoded tokens.
        main: the main query group.
        predictions: of the encoder, by name; empty in one-stage detectors.
        targets: the ground truth.
        further: for each method with `further`, the queries that the query source made for it.
        branches: of the methods before this one in `model.methods`.
        images: normalised and padded, as the backbone gets them.
        supervisions: of the detector itself in this step, after `supervise` and `supervise_last` of all methods.
    """

    model: DetectionTransformer
    memory: MultiScaleTokens
    main: QueryGroup
    predictions: dict[str, Predictions]
    targets: Targets
    further: Mapping[Method, QueryGroup] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    images: ImageList | None = None
    supervisions: Sequence[Supervision] = ()


@dataclass(frozen=True)
class Branch:
    """Queries or predictions that exist only in training, and their supervision.

    Attributes:
        group: a query group for the decoder, or None.
        supervisions: of the group's predictions, or of those in `predictions`.
        predictions: predictions made without the decoder, by name.
    """

    group: QueryGroup | None
    supervisions: Sequence[Supervision]
    predictions: Mapping[str, Predictions] = field(default_factory=dict)


class Method(nn.Module):
    """Base of the training methods; a config switches one on by adding it to `model.methods`.

    Its parameters are under `methods` in the model and are not used at inference. Methods can be combined, so each adds
    branches of its own and leaves those of others alone.

    Attributes:
        further: set in `attach`, by a method that needs more queries like the main ones, to the rows that the query
            source returns for them; their group is then in `Step.further`.
    """

    def __init__(self):
        super().__init__()
        self.further: QueryRows | None = None

    def attach(self, model: DetectionTransformer) -> None:
        """Called once, when the model is built: check that the method supports this detector, take sizes and copies of
        its parts. Must not keep `model` itself as an attribute.

        Raises:
            ValueError: the method does not work for this detector.
        """

    def prepare(self, model: DetectionTransformer) -> None:
        """Called at the beginning of a training step, before the model runs; may change values of parameters."""

    def supervise(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        """The supervisions of the detector itself in this step, given those without this method."""
        return supervisions

    def supervise_last(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        """Like `supervise`, but called after `supervise` of all methods: for a method that wraps the assigners or
        losses that the others have chosen."""
        return supervisions

    def branches(self, step: Step) -> list[Branch]:
        """The branches that the method adds to this training step."""
        return []

    def during_decoder(self, step: Step) -> AbstractContextManager[object]:
        """A context in which the decoder runs, for a method that watches it.

        Args:
            step: as in `branches`, but with the branches of all methods.
        """
        return nullcontext()

    def after_decoder(self, step: Step, predictions: Mapping[str, Predictions]) -> list[Branch]:
        """Branches that can only be made after the decoder has run. They must not have a query group.

        Args:
            step: as in `branches`, but with the branches of all methods.
            predictions: of all groups, by name.
        """
        return []

    def extra_losses(self, step: Step, predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
        """Weighted scalar losses by name, in addition to those of the method's supervisions.

        Args:
            step: as in `branches`, but with the branches of all methods.
            predictions: of all groups, by name.
        """
        return {}


def log_storage(period: int) -> EventStorage | None:
    """The trainer's event storage in every `period`-th iteration; None in the others, and outside of a training."""
    try:
        storage = get_event_storage()
    except AssertionError:
        return None
    return None if (storage.iter + 1) % period else storage
