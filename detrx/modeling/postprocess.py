"""From the predictions of the last decoder layer to detections; no NMS."""

from collections.abc import Sequence

from torch import Tensor

from detrx.d2.structures import Boxes, Instances
from detrx.layers import cxcywh_to_xyxy

from .queries import Predictions


class TopDetections:
    """The highest scores over all (query, class) pairs, for heads trained with a sigmoid.

    Args:
        num_detections: pairs returned per image.
    """

    def __init__(self, num_detections: int = 100):
        self.num_detections = num_detections

    def scores(self, predictions: Predictions) -> Tensor:
        """(B, N, K) in [0, 1]."""
        return predictions.logits[-1].float().sigmoid()

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, N, K) -> score, query and class (B, M) of the detections, by falling score."""
        num_classes = scores.shape[-1]
        best, index = scores.flatten(1).topk(min(self.num_detections, scores[0].numel()), dim=1)
        return best, index // num_classes, index % num_classes

    def __call__(self, predictions: Predictions, image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """Per image `pred_boxes` (xyxy in pixels of the unpadded input), `scores`, `pred_classes` and `pred_queries`
        (the index of the query), by falling score."""
        scores, queries, classes = self.select(self.scores(predictions))
        boxes = predictions.boxes[-1].float()
        boxes = cxcywh_to_xyxy(boxes).gather(1, queries[..., None].expand(-1, -1, 4))
        results = []
        for image_scores, image_classes, image_queries, image_boxes, (height, width) in zip(
            scores, classes, queries, boxes, image_sizes, strict=True
        ):
            found = Instances((height, width))
            found.pred_boxes = Boxes(image_boxes * image_boxes.new_tensor([width, height, width, height]))
            found.scores = image_scores
            found.pred_classes = image_classes
            found.pred_queries = image_queries
            results.append(found)
        return results
