"""What the queries of a detector do, image by image: activation, places of their boxes, what methods analyse."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrx.analysis.activation import ActivationAnalysis
from detrx.analysis.queries import Subject, query_analyses
from detrx.d2.structures import Instances
from detrx.errors import InvalidInputError
from detrx.modeling import DetectionTransformer


class QueryWatch:
    """Collects figures on the queries of a model that is called with one image at a time.

    Args:
        model: in evaluation mode.
        model_cfg: the description of the model.
        class_names: by class index.
        score_threshold: least score of a detection that makes its query active.

    Raises:
        ImportError: see `ActivationAnalysis`.
    """

    def __init__(self, model: DetectionTransformer, model_cfg: Any, class_names: Sequence[str], score_threshold: float):
        subject = Subject(model, model_cfg, class_names, score_threshold)
        self.activation = ActivationAnalysis.of(subject)
        applying = [each for each in query_analyses().values() if each.in_report and each.applies_to(model)]
        self.others = [each.of(subject) for each in applying]
        self.sums: Tensor | None = None
        model.decoder.register_forward_hook(self._note_boxes)

    def _note_boxes(self, decoder: nn.Module, inputs: Any, output: Any) -> None:
        boxes = output["main"].boxes[-1][0].double().cpu()  # cxcywh, in fractions of the image
        both = torch.stack([boxes, boxes**2])
        self.sums = both if self.sums is None else self.sums + both

    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Take account of an image that the model was called with."""
        self.activation.observe(inputs, instances)
        for analysis in self.others:
            analysis.observe(inputs, instances)

    def figures(self) -> dict[str, Any]:
        """`activation`: see `ActivationAnalysis.figures`; `boxes` (N, 4): mean box of each query, cxcywh in fractions
        of the image; `spread` (N, 2): standard deviation of its centre; `tables`: those of the other analyses.

        Raises:
            ValueError: no image was observed.
        """
        if self.sums is None:
            raise InvalidInputError("the queries cannot be analysed: the dataset has no images")
        mean, square = self.sums / self.activation.images
        return {
            "activation": self.activation.figures(),
            "boxes": mean.tolist(),
            "spread": (square - mean**2).clamp(min=0).sqrt()[:, :2].tolist(),
            "tables": [analysis.table() for analysis in self.others],
        }
