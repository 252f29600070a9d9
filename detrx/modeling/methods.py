"""What a training method is to a detector: something that adds query groups to a step, or changes its supervision."""

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

if TYPE_CHECKING:
    from .meta_arch import DetectionTransformer


@dataclass(frozen=True)
class Step:
    """A training step before the decoder runs.

    Attributes:
        model: the detector.
        memory: the encoded tokens.
        main: the main query group.
        predictions: those of the encoder, by name; empty in one-stage detectors.
        targets: the ground truth.
        further: the queries that the source made for each method with `further`.
        branches: those of the methods that stand before this one.
        images: normalised and padded, as the backbone gets them.
    """

    model: DetectionTransformer
    memory: MultiScaleTokens
    main: QueryGroup
    predictions: dict[str, Predictions]
    targets: Targets
    further: Mapping[Method, QueryGroup] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    images: ImageList | None = None


@dataclass(frozen=True)
class Branch:
    """What exists in training only, and how it is supervised.

    Attributes:
        group: a query group for the decoder; None: there is none.
        supervisions: of the group's predictions, or of those in `predictions`.
        predictions: made without the decoder, by name.
    """

    group: QueryGroup | None
    supervisions: Sequence[Supervision]
    predictions: Mapping[str, Predictions] = field(default_factory=dict)


class Method(nn.Module):
    """A way of training a detector better, switched on by naming it in `model.methods`.

    Its parameters are under `methods` in the model, and inference does not touch them. A method has to work beside
    others: it adds branches of its own and leaves those of other methods alone.

    Attributes:
        further: to be set in `attach` by a method that needs more queries like the main ones, to what the query source
            gives for it; their group is then in `Step.further`.
    """

    def __init__(self):
        super().__init__()
        self.further: QueryRows | None = None

    def attach(self, model: DetectionTransformer) -> None:
        """Called once when the model is built: check that the detector is of a kind the method works for, take sizes
        and copies of its parts. Must not keep `model` itself as an attribute.

        Raises:
            ValueError: the method does not work for this detector.
        """

    def prepare(self, model: DetectionTransformer) -> None:
        """Called when a training step begins, before anything of the model runs; may change values of parameters."""

    def supervise(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        """The supervisions of the detector itself in this step, given those that would be without the method."""
        return supervisions

    def branches(self, step: Step) -> list[Branch]:
        """What the method adds to this training step."""
        return []

    def during_decoder(self, step: Step) -> AbstractContextManager[object]:
        """A context in which the decoder runs, for a method that watches it.

        Args:
            step: as `branches` got it, with the branches of all methods.
        """
        return nullcontext()

    def after_decoder(self, step: Step, predictions: Mapping[str, Predictions]) -> list[Branch]:
        """Predictions of the method's own that could not be made before the decoder ran, and supervisions of these or
        of other groups; no query groups.

        Args:
            step: as `branches` got it, with the branches of all methods.
            predictions: of all groups, by name.
        """
        return []

    def extra_losses(self, step: Step, predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
        """Weighted scalar losses of the method's own, by name, beside those of its supervisions.

        Args:
            step: as `branches` got it, with the branches of all methods.
            predictions: of all groups, by name.
        """
        return {}


def log_storage(period: int) -> EventStorage | None:
    """The trainer's event storage in every `period`-th iteration; None in the others, and outside of a training, where
    nobody would read what is logged."""
    try:
        storage = get_event_storage()
    except AssertionError:
        return None
    return None if (storage.iter + 1) % period else storage
