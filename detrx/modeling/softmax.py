"""Cost, loss and detections for class heads with a softmax whose last logit is "no object" (DETR, arXiv 2005.12872)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import Loss
from .matching import Assignment, MatchingCost
from .postprocess import TopDetections
from .queries import Predictions
from .targets import Targets


class SoftmaxMatchingCost(MatchingCost):
    """`MatchingCost` with the negative probability of the class as class cost."""

    def class_cost(self, logits: Tensor) -> Tensor:
        return -logits.softmax(-1)


class CrossEntropyLoss(Loss):
    """Weighted mean of the cross entropy of all queries; the target of unmatched ones is "no object".

    Args:
        no_object_weight: weight of unmatched queries in the mean; matched ones have weight 1.
    """

    name = "loss_class"
    is_mean = True

    def __init__(self, weight: float = 1.0, no_object_weight: float = 0.1):
        super().__init__(weight)
        self.no_object_weight = no_object_weight

    def __call__(self, predictions: Predictions, targets: Targets, pairs: Assignment) -> Tensor:
        logits = predictions.logits.float()
        no_object = logits.shape[-1] - 1
        label = torch.full(logits.shape[:-1], no_object, device=logits.device)
        label[pairs.layer, pairs.image, pairs.query] = targets.labels[pairs.image, pairs.truth]
        loss = F.cross_entropy(logits.movedim(-1, 1), label, reduction="none")
        weight = torch.where(label == no_object, self.no_object_weight, 1.0)
        return (loss * weight).sum((1, 2)) / weight.sum((1, 2))


class TopQueries(TopDetections):
    """The queries with the highest scores, each with its best class."""

    def scores(self, predictions: Predictions) -> Tensor:
        return predictions.logits[-1].float().softmax(-1)[..., :-1]

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, classes = scores.max(-1)
        best, queries = best.topk(min(self.num_detections, best.shape[1]), dim=1)
        return best, queries, classes.gather(1, queries)
