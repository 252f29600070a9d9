"""Supervision of the encoder in one-stage detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrx.errors import InvalidInputError

from .criterion import Supervision
from .encoder_proposals import EncoderProposals
from .methods import Branch, Method, Step
from .queries import Predictions

if TYPE_CHECKING:
    from .meta_arch import DetectionTransformer


class EncoderSupervision(Method):
    """In training, every token proposes a box around itself, as in two-stage detectors. The proposals are supervised.

    This gives the backbone a direct training signal, in addition to the one through attention to all tokens.

    Args:
        proposals: heads that predict the proposals; these do not become queries.
        supervision: supervision of the proposals; its `group` is their name.
    """

    def __init__(self, proposals: EncoderProposals, supervision: Supervision):
        super().__init__()
        self.proposals = proposals
        self.supervision = supervision

    def attach(self, model: DetectionTransformer) -> None:
        if isinstance(model.query_source, EncoderProposals):
            raise InvalidInputError(
                "EncoderSupervision is for detectors without EncoderProposals; in this detector, the criterion already "
                "supervises the encoder's proposals"
            )

    def branches(self, step: Step) -> list[Branch]:
        proposals = self.proposals.propose(step.memory)
        predictions = Predictions(proposals.logits[None], proposals.boxes[None])
        return [Branch(None, [self.supervision], {self.supervision.group: predictions})]
