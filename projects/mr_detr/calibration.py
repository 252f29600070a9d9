"""Localisation-aware score calibration of Mr. DETR++: a class score times a learned IoU score."""

import torch
from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.layers import cxcywh_to_xyxy, iou_xyxy
from detrx.layers.module_list import TypedModuleList
from detrx.modeling import PredictionHeads, Predictions, Targets, TopDetections
from detrx.modeling.heads import class_head
from detrx.modeling.losses import Loss, class_cells, matched_boxes, varifocal
from detrx.modeling.matching import Assignment


class CalibratedHeads(PredictionHeads):
    """`PredictionHeads` with a second head for each class head, which predicts an IoU score for every class.

    Args:
        see `PredictionHeads`.

    Raises:
        ValueError: `no_object` is set; calibration needs a sigmoid for each class.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_layers: int,
        shared: bool = False,
        initial_size_logit: float = 0.0,
        no_object: bool = False,
    ):
        if no_object:
            raise InvalidInputError(
                "CalibratedHeads needs a sigmoid for each class, but no_object=True means a softmax"
            )
        super().__init__(embed_dim, num_classes, num_layers, shared, initial_size_logit)
        self.quality_heads = TypedModuleList(class_head(embed_dim, num_classes) for _ in self.class_heads)


class QualityLoss(Loss):
    """Varifocal loss (arXiv 2008.13367) of the IoU score.

    For the class of the ground truth, the target of a matched query is the IoU of its box with the ground truth; the
    best one if it is matched with several boxes of the class. The target is 0 for other classes and other queries, and
    has no gradient.

    Args:
        alpha, gamma: parameters of the weight alpha * p^gamma of unmatched (query, class) pairs.
    """

    name = "loss_quality"

    def __init__(self, weight: float = 1.0, alpha: float = 0.75, gamma: float = 2.0):
        super().__init__(weight)
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        if predictions.quality is None:
            raise InvalidInputError(
                "QualityLoss needs predictions with an IoU score, from a decoder whose heads are CalibratedHeads; "
                "the encoder's predictions have none"
            )
        logits = predictions.quality.float()
        predicted, truth = matched_boxes(predictions, targets, pairs)
        iou, _ = iou_xyxy(cxcywh_to_xyxy(predicted.detach()), cxcywh_to_xyxy(truth))
        cells = class_cells(pairs, targets, logits.shape)
        quality = torch.zeros_like(logits).flatten().scatter_reduce(0, cells, iou, "amax").view_as(logits)
        positive = torch.zeros_like(logits, dtype=torch.bool).flatten().index_fill(0, cells, True).view_as(logits)
        return varifocal(logits, quality, positive, self.alpha, self.gamma).sum((1, 2, 3))


class CalibratedDetections(TopDetections):
    """`TopDetections` with the score s_cls^phi * s_iou^(1 - phi), where s_iou is the IoU score of the last layer.

    Args:
        detections: `TopDetections` or `MixedDetections`; provides the class scores, the number of detections and the
            threshold, which the calibrated score is compared with.
        phi: 1 uses the class score alone, 0 the IoU score alone.

    Raises:
        ValueError: phi is not in [0, 1]; when called, the predictions have no IoU score.
    """

    def __init__(self, detections: TopDetections, phi: float = 0.5):
        super().__init__(detections.num_detections, detections.score_threshold)
        if not 0 <= phi <= 1:
            raise InvalidInputError(f"phi must be in [0, 1], got {phi}")
        self.detections, self.phi = detections, phi

    def scores(self, predictions: Predictions) -> Tensor:
        if predictions.quality is None:
            raise InvalidInputError("CalibratedDetections needs a decoder whose heads are CalibratedHeads")
        quality = predictions.quality[-1].float().sigmoid()
        return self.detections.scores(predictions) ** self.phi * quality ** (1 - self.phi)
