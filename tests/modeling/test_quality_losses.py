"""Losses of Align-DETR against values worked out by hand."""

import math

import pytest
import torch

from detrx.d2.structures import Boxes, Instances
from detrx.layers import inverse_sigmoid
from detrx.modeling import AlignedQuality, GIoULoss, IABCELoss, KnownPairs, L1Loss, Predictions, RankWeight, Targets
from detrx.modeling.quality_losses import rank_in_bag


@pytest.fixture
def example():
    """Two boxes; queries 0, 1 and 2 answer for the first with IoU 1, .5 and 0, query 3 for the second with .25."""
    instances = Instances(
        (100, 100),
        gt_boxes=Boxes(torch.tensor([[0.0, 0, 40, 40], [50.0, 50, 90, 90]])),
        gt_classes=torch.tensor([1, 0]),
    )
    targets = Targets.from_instances([instances], [0], torch.device("cpu"))
    boxes = torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.1, 0.2, 0.2, 0.4], [0.8, 0.2, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]])
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.1, 0.8], [0.5, 0.5], [0.6, 0.7]])
    boxes = torch.cat([boxes, torch.rand(1, 4)])
    predictions = Predictions(inverse_sigmoid(scores)[None, None].requires_grad_(), boxes[None, None].requires_grad_())
    known = KnownPairs(torch.zeros(4, dtype=torch.long), torch.arange(4), torch.tensor([0, 0, 0, 1]))
    return predictions, targets, known.assign(predictions, targets)


QUALITY = [0.2**0.25, 0.9**0.25 * 0.5**0.75, 0.01, 0.5**0.25 * 0.25**0.75]
RANK = [0, 1, 2, 0]


def test_quality(example):
    torch.testing.assert_close(AlignedQuality()(*example), torch.tensor(QUALITY), atol=1e-4, rtol=1e-4)
    by_iou = AlignedQuality(alpha=0.0, minimum=0.1)(*example)
    torch.testing.assert_close(by_iou, torch.tensor([1.0, 0.5, 0.1, 0.25]), atol=1e-4, rtol=1e-4)


def test_ranks():
    values = torch.tensor([0.3, 0.9, 0.9, 0.1, 0.5, 0.9])
    assert rank_in_bag(values, torch.tensor([7, 2, 7, 7, 2, 7])).tolist() == [2, 0, 0, 3, 1, 1]
    assert rank_in_bag(values[:0], torch.empty(0, dtype=torch.long)).tolist() == []


def test_rank_weight(example):
    weights = RankWeight(tau=1.5)(*example)
    torch.testing.assert_close(weights, torch.tensor([math.exp(-rank / 1.5) for rank in RANK]))


def test_box_losses_with_weights(example):
    predictions, targets, pairs = example
    predicted, truth = predictions.boxes[0, 0, :4], targets.boxes[0, [0, 0, 0, 1]]
    weights = torch.tensor([math.exp(-rank / 0.5) for rank in RANK])
    expected = ((predicted - truth).abs().sum(-1) * weights).sum()
    torch.testing.assert_close(L1Loss(pair_weight=RankWeight(tau=0.5))(*example), expected[None])
    alone = [
        GIoULoss()(predictions, targets, type(pairs)(*(i[j : j + 1] for i in vars(pairs).values()))) for j in range(4)
    ]
    expected = (torch.cat(alone) * weights).sum()
    torch.testing.assert_close(GIoULoss(pair_weight=RankWeight(tau=0.5))(*example), expected[None])


def test_ia_bce_loss(example):
    predictions = example[0]
    p = predictions.logits[0, 0].sigmoid().tolist()
    t = [q * math.exp(-rank / 1.5) for q, rank in zip(QUALITY, RANK, strict=True)]
    labels, expected = [1, 1, 1, 0], 0.0
    for query in range(5):
        for label in range(2):
            s = p[query][label]
            if query < 4 and labels[query] == label:
                expected += -t[query] * math.log(s) - (1 - t[query]) * math.log(1 - s)
            else:
                expected += -(s**2) * math.log(1 - s)
    loss = IABCELoss(pair_weight=RankWeight(tau=1.5))(*example)
    assert loss.tolist() == pytest.approx([expected], rel=1e-4)
    loss.sum().backward()
    assert predictions.boxes.grad is None and predictions.logits.grad.all()


def test_ia_bce_loss_of_a_query_with_two_boxes(example):
    """The better pair decides, in whatever order."""
    predictions, targets, _ = example
    one = torch.zeros(1, dtype=torch.long)
    same_class = Targets(torch.zeros_like(targets.labels), targets.boxes, targets.counts, targets.image_ids)
    best = IABCELoss()(predictions, same_class, KnownPairs(one, one, one).assign(predictions, same_class))
    for truth in ([0, 1], [1, 0]):
        pairs = KnownPairs(one.repeat(2), one.repeat(2), torch.tensor(truth)).assign(predictions, same_class)
        torch.testing.assert_close(IABCELoss()(predictions, same_class, pairs), best)
