"""Detections by hand, for the tests of analyses of queries."""

import torch

from detrx.analysis.queries import QueryAnalysis
from detrx.d2.structures import Boxes, Instances
from detrx.modeling import DetectionTransformer
from tests.modeling.small import make_input


def detections(*rows: tuple[int, int, float]) -> Instances:
    """From rows of query, class and score."""
    queries, classes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Instances(
        (64, 64),
        pred_boxes=Boxes(torch.zeros(len(rows), 4)),
        pred_queries=torch.tensor(queries, dtype=torch.long),
        pred_classes=torch.tensor(classes, dtype=torch.long),
        scores=torch.tensor(scores),
    )


@torch.no_grad()
def observe(analysis: QueryAnalysis, model: DetectionTransformer, *images: Instances) -> list[dict]:
    """Let the analysis see these detections of images with the ids 100, 101, ...; returns the inputs."""
    inputs = [make_input(64, 64 + 32 * (number % 2), image_id=100 + number) for number in range(len(images))]
    for each, instances in zip(inputs, images, strict=True):
        model([each])
        analysis.observe(each, instances)
    return inputs
