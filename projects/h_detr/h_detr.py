"""Hybrid matching (H-DETR, arXiv 2207.13080): one-to-many matching in addition to one-to-one matching.

One-to-many matching repeats the ground truth K times before Hungarian matching. The three schemes apply it to
additional queries, in the first part of the training, or in the first decoder layers.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

from detrx.d2.utils import get_event_storage
from detrx.errors import InvalidInputError
from detrx.modeling import Branch, DetectionTransformer, HungarianMatcher, Method, QuerySource, Step, Supervision


class Hybrid(Method):
    """Base class of the schemes.

    Args:
        copies: number K of queries that each ground-truth box takes in one-to-many matching.
    """

    def __init__(self, copies: int):
        super().__init__()
        if not isinstance(copies, int) or copies < 1:
            raise InvalidInputError(f"copies must be a whole number, at least 1, got {copies!r}")
        self.copies = copies

    def attach(self, model: DetectionTransformer) -> None:
        if model.criterion is not None:
            self.one_to_many(model.criterion.supervisions)

    def one_to_many(self, supervisions: Sequence[Supervision]) -> list[Supervision]:
        """The supervisions of the main group, with K queries for each box.

        Raises:
            ValueError: there are none, or they do not use Hungarian matching.
        """
        main = [supervision for supervision in supervisions if supervision.group == "main"]
        kinds = {type(supervision.assigner).__name__ for supervision in main}
        if kinds != {HungarianMatcher.__name__}:
            raise InvalidInputError(
                f"{type(self).__name__} repeats the ground truth of a HungarianMatcher; in this detector the main "
                f"group is supervised by {', '.join(sorted(kinds)) or 'nothing'}"
            )
        result = []
        for supervision in main:
            assigner = copy.copy(supervision.assigner)
            assigner.copies = self.copies
            result.append(supervision.replace(assigner=assigner, repeats=self.copies))
        return result


class HybridBranch(Hybrid):
    """Additional queries, matched one-to-many and separate from the main ones in self-attention.

    They are of the same kind as the main ones. In two-stage detectors, they start from the proposals that rank directly
    after those of the main queries.

    Args:
        num_queries: number T of additional queries.
        copies: see `Hybrid`.
        weight: factor of their losses (lambda).
    """

    def __init__(self, num_queries: int = 1500, copies: int = 6, weight: float = 1.0):
        super().__init__(copies)
        if not isinstance(num_queries, int) or num_queries < 1:
            raise InvalidInputError(
                f"num_queries must be a whole number, at least 1, got {num_queries!r}; "
                "to train without the branch, remove the method"
            )
        if weight < 0:
            raise InvalidInputError(f"weight must not be negative, got {weight}")
        self.num_queries, self.weight = num_queries, weight

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        if not isinstance(model.query_source, QuerySource):
            raise InvalidInputError(
                f"HybridBranch needs more queries of the same kind, which {type(model.query_source).__name__} cannot "
                "make: it is no QuerySource"
            )
        self.further = model.query_source.further(self.num_queries)

    def branches(self, step: Step) -> list[Branch]:
        group = replace(step.further[self], name="hybrid")
        supervisions = [
            each.replace(group="hybrid", suffix=f"{each.suffix}_one2many", weight=each.weight * self.weight)
            for each in self.one_to_many(step.model.criterion.supervisions)
        ]
        return [Branch(group, supervisions)]


class HybridEpoch(Hybrid):
    """One-to-many matching of the main queries in the first part of the training, then one-to-one matching.

    Args:
        max_iter: number of iterations of the whole training, `train.max_iter`.
        rho: fraction of the iterations with one-to-many matching.
        copies: see `Hybrid`.
    """

    def __init__(self, max_iter: int, rho: float = 2 / 3, copies: int = 10):
        super().__init__(copies)
        if not isinstance(max_iter, int) or max_iter < 1:
            raise InvalidInputError(
                f"max_iter must be the iterations of the training (${{train.max_iter}}), got {max_iter!r}"
            )
        if not 0 <= rho <= 1:
            raise InvalidInputError(f"rho must be in [0, 1], got {rho}")
        self.end = rho * max_iter

    def supervise(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        try:
            iteration = get_event_storage().iter
        except AssertionError as error:
            raise RuntimeError(
                "HybridEpoch needs the current iteration: call the model in a trainer's training loop, or inside "
                "`with EventStorage(iteration):`"
            ) from error
        if iteration >= self.end:
            return supervisions
        others = [supervision for supervision in supervisions if supervision.group != "main"]
        return [*self.one_to_many(supervisions), *others]


class HybridLayer(Hybrid):
    """One-to-many matching of the main queries in the first decoder layers, one-to-one matching in the others.

    Args:
        num_layers: number L1 of layers with one-to-many matching; smaller than the number of layers.
        copies: see `Hybrid`.
    """

    def __init__(self, num_layers: int, copies: int = 10):
        super().__init__(copies)
        if not isinstance(num_layers, int):
            raise InvalidInputError(f"num_layers must be a whole number, got {num_layers!r}")
        self.num_layers = num_layers

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        self.num_decoder_layers = len(model.decoder.layers)
        if not 0 < self.num_layers < self.num_decoder_layers:
            raise InvalidInputError(
                f"HybridLayer: num_layers is {self.num_layers}, but of the {self.num_decoder_layers} layers of the "
                "decoder, at least one must be one-to-many, and the last one must be one-to-one"
            )

    def supervise(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        result = []
        for supervision in supervisions:
            if supervision.group != "main":
                result.append(supervision)
                continue
            many, one = supervision.split(self.num_layers, self.num_decoder_layers)
            result += (self.one_to_many(many) if many else []) + one
        return result
