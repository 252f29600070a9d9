"""Compare the detections of an exported graph with those of the detector."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.errors import InvalidInputError

from .graph import DetectionGraph


def example_images(count: int, size: tuple[int, int], dtype: str, seed: int) -> Tensor:
    """Images (count, 3, H, W) of smooth random noise in 0..255, of the named dtype."""
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.zeros(count, 3, *size)
    for cells in (3, 12, 48):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        clouds = clouds + F.interpolate(noise, size, mode="bicubic")
    return (64 * clouds + 128).clamp(0, 255).round().to(getattr(torch, dtype))


@torch.no_grad()
def check_same_detections(
    graph: DetectionGraph,
    batches: Sequence[Tensor],
    run: Callable[[Tensor], Sequence[Tensor]],
    tolerance: float = 1e-3,
) -> float:
    """Compare an exported graph `run` with the detector on batches of images.

    Returns:
        the largest difference, see `detection_difference`.

    Raises:
        ValueError: the difference is larger than `tolerance`, or NaN.
    """
    differences = []
    for images in batches:
        expected, found = ([each.cpu() for each in function(images)] for function in (graph, run))
        height, width = images.shape[-2:]
        differences.append(detection_difference(expected, found, (height, width)))
    largest = torch.tensor(differences).max().item()  # NaN if any difference is
    if not largest <= tolerance:
        raise InvalidInputError(
            f"the exported detections differ from the detector's by {largest:.1e} (in scores, or in boxes as fractions "
            f"of the image size), more than {tolerance:g}; the file was not written"
        )
    return largest


def detection_difference(expected: Sequence[Tensor], found: Sequence[Tensor], size: tuple[int, int]) -> float:
    """Largest difference between detections, in scores and in box coordinates as fractions of height and width.

    Equal scores may be in any order, so scores are compared rank by rank, and each detection is compared with the most
    similar one of its class, in both directions. A detection whose score is so close to the lowest one that the
    difference in scores may exclude it from the other list needs no partner.

    Args:
        expected, found: boxes (B, N, 4) xyxy in pixels, scores (B, N) in descending order, labels (B, N).
        size: height and width of the images.

    Returns:
        the difference; infinity if a detection has no partner.
    """
    height, width = size
    scale = torch.tensor([width, height, width, height])
    differences = []
    for boxes, scores, labels, other_boxes, other_scores, other_labels in zip(*expected, *found, strict=True):
        of_scores = (scores - other_scores).abs()
        apart = ((boxes / scale)[:, None] - other_boxes / scale).abs().amax(-1)
        apart = torch.maximum(apart, (scores[:, None] - other_scores).abs())
        apart = apart.masked_fill(labels[:, None] != other_labels, float("inf"))
        margin = 2 * of_scores.max()
        kept = (scores > scores[-1] + margin) | (scores[-1] == scores[0])
        other_kept = (other_scores > other_scores[-1] + margin) | (other_scores[-1] == other_scores[0])
        differences += [apart.amin(1)[kept], apart.amin(0)[other_kept], of_scores]
    return torch.cat(differences).max().item()
