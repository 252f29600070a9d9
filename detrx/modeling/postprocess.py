"""Convert the predictions of the last decoder layer to detections, without NMS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detrx.d2.structures import Boxes, Instances
from detrx.errors import InvalidInputError, NonFinitePredictionError
from detrx.layers import cxcywh_to_xyxy, to_device

from .queries import Predictions


class TopDetections:
    """The (query, class) pairs with the highest scores, for class heads trained with a sigmoid.

    Args:
        num_detections: number of pairs per image.
        score_threshold: pairs with a lower score, in [0, 1], are left out; 0 leaves out none.

    Raises:
        ValueError: the threshold is not in [0, 1].
    """

    def __init__(self, num_detections: int = 100, score_threshold: float = 0.0):
        if not (isinstance(score_threshold, (int, float)) and 0 <= score_threshold <= 1):
            raise InvalidInputError(f"score_threshold must be in [0, 1], got {score_threshold!r}")
        self.num_detections, self.score_threshold = num_detections, score_threshold

    def scores(self, predictions: Predictions) -> Tensor:
        """Scores (B, N, K) in [0, 1]."""
        return predictions.logits[-1].float().sigmoid()

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, N, K) -> score, query and class (B, M) of the detections, in descending order of score."""
        num_classes = scores.shape[-1]
        best, index = scores.flatten(1).topk(min(self.num_detections, scores[0].numel()), dim=1)
        return best, index // num_classes, index % num_classes

    def __call__(
        self,
        predictions: Predictions,
        image_sizes: Sequence[tuple[int, int]],
        frames: Sequence[tuple[int, int]] | None = None,
    ) -> list[Instances]:
        """
        Args:
            image_sizes: (height, width) of each unpadded image.
            frames: (height, width) of the output frame of each image. Boxes are scaled to its pixels and clipped to it,
                and boxes without area are dropped, for which the host waits once. None: boxes are in pixels of the
                images and are not clipped.

        Returns:
            per image `pred_boxes` (xyxy in pixels), `scores`, `pred_classes` and `pred_queries` (the index of the
            query), in descending order of score. Empty rows of the predictions are not detected. With a
            `score_threshold`, the host waits once for the numbers of detections also without `frames`.

        Raises:
            FloatingPointError: with `frames`, a box is NaN or infinite.
        """
        scores, real = self.scores(predictions), None
        if predictions.padding is not None:
            scores = scores.masked_fill(predictions.padding[..., None], -1.0)
        scores, queries, classes = self.select(scores)
        if predictions.padding is not None:
            real = ~predictions.padding.gather(1, queries)
        if self.score_threshold > 0:
            high = scores >= self.score_threshold
            real = high if real is None else real & high
        boxes = predictions.boxes[-1].float()
        boxes = cxcywh_to_xyxy(boxes).gather(1, queries[..., None].expand(-1, -1, 4))
        boxes = boxes * _per_image([(w, h, w, h) for h, w in image_sizes], boxes)
        if frames is None:
            counts = [boxes.shape[1]] * len(boxes) if real is None else real.sum(-1).tolist()
        else:
            boxes, keep, counts = _in_frames(boxes, image_sizes, frames, real)
            if min(counts) < boxes.shape[1]:
                order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
                scores, queries, classes = (each.gather(1, order) for each in (scores, queries, classes))
                boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        results = []
        for index, (size, count) in enumerate(zip(image_sizes if frames is None else frames, counts, strict=True)):
            found = Instances(tuple(size))
            found.pred_boxes = Boxes(boxes[index, :count])
            found.scores = scores[index, :count]
            found.pred_classes = classes[index, :count]
            found.pred_queries = queries[index, :count]
            results.append(found)
        return results


def _per_image(rows: Sequence[Sequence[float]], boxes: Tensor) -> Tensor:
    """Convert one row of n numbers per image to (B, 1, n), with the dtype and device of `boxes` (B, M, 4)."""
    return to_device(torch.tensor(rows, dtype=boxes.dtype), boxes.device)[:, None]


def _in_frames(
    boxes: Tensor, sizes: Sequence[tuple[int, int]], frames: Sequence[tuple[int, int]], real: Tensor | None
) -> tuple[Tensor, Tensor, list[int]]:
    """Scale boxes (B, M, 4) xyxy from pixels of the images to pixels of the frames, and clip them.

    Args:
        real: (B, M) bool, False for boxes to leave out; None: none.

    Returns:
        the boxes; which of them are real and have an area, (B, M) bool; and the number of these in each image.

    Raises:
        FloatingPointError: a box is NaN or infinite.
    """
    scales = [(width / w, height / h) * 2 for (h, w), (height, width) in zip(sizes, frames, strict=True)]
    limits = [(width, height) * 2 for height, width in frames]
    scaled = boxes * _per_image(scales, boxes)
    boxes = torch.minimum(scaled.clamp(min=0), _per_image(limits, boxes))
    keep = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    keep = keep if real is None else keep & real
    counts = torch.where(scaled.isfinite().all(-1).all(-1), keep.sum(-1), -1).tolist()
    if -1 in counts:
        bad = [index for index, count in enumerate(counts) if count < 0]
        raise NonFinitePredictionError(f"predicted boxes are NaN or infinite in images {bad} of the batch")
    return boxes, keep, counts
