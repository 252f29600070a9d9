"""Detections by mixed scores of successive decoder layers."""

from torch import Tensor

from detrx.layers import inverse_sigmoid
from detrx.modeling import Predictions, TopDetections


class MixedDetections(TopDetections):
    """`TopDetections` with mixed scores of all layers, as in the published Mr. DETR.

    With the scores p_l of layer l, m_0 = p_0 and m_l = sqrt((p_l^exponent + m_{l-1}^previous_exponent) / 2), each
    clamped to [eps, 1 - eps]. The last m is the score. Boxes are those of the last layer.
    """

    def __init__(
        self,
        num_detections: int = 100,
        score_threshold: float = 0.0,
        exponent: float = 2.001,
        previous_exponent: float = 1.853,
        eps: float = 1e-3,
    ):
        super().__init__(num_detections, score_threshold)
        self.exponent, self.previous_exponent, self.eps = exponent, previous_exponent, eps

    def scores(self, predictions: Predictions) -> Tensor:
        first, *others = predictions.logits.float().sigmoid().unbind()
        mixed = self.clamp(first)
        for score in others:
            mixed = self.clamp(((score**self.exponent + mixed**self.previous_exponent) / 2).sqrt())
        return mixed

    def clamp(self, scores: Tensor) -> Tensor:
        return inverse_sigmoid(scores, self.eps).sigmoid()
