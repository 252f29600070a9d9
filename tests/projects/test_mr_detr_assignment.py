"""One-to-many assignment by votes, on numbers that can be checked by hand."""

import numpy as np
import pytest
import torch

from detrx.d2.structures import Boxes, Instances
from detrx.modeling import (
    FocalLoss,
    HungarianMatcher,
    IABCELoss,
    MatchingCost,
    MatchingQuality,
    Predictions,
    Targets,
)
from detrx.modeling.matching import Assignment
from detrx.projects.mr_detr import AnchorMatcher, VotingAssigner


def pairs_of(quality: list[list[float]], **options) -> set[tuple[int, int]]:
    """Rows are predictions, columns are boxes."""
    query, truth = VotingAssigner(MatchingQuality(), **options).pairs(np.array(quality, dtype=np.float32))
    assert len(query) == len(set(zip(query.tolist(), truth.tolist(), strict=True)))
    return set(zip(query.tolist(), truth.tolist(), strict=True))


def test_predictions_vote_for_their_best_box_from_the_threshold_on():
    quality = [[0.9, 0.5], [0.5, 0.1], [0.3, 0.8], [0.2, 0.39]]
    assert pairs_of(quality) == {(0, 0), (1, 0), (2, 1)}
    assert pairs_of(quality, threshold=0.39) == {(0, 0), (1, 0), (2, 1), (0, 1)}


def test_a_box_with_votes_takes_its_best_predictions_whomever_they_voted_for():
    """Box 1 has the votes of 2 and 3, but its best predictions are 0, which voted for box 0, and 2."""
    quality = [[0.9, 0.8], [0.1, 0.1], [0.1, 0.6], [0.1, 0.5]]
    assert pairs_of(quality) == {(0, 0), (0, 1), (2, 1)}


def test_the_best_prediction_of_a_box_votes_below_the_threshold():
    assert pairs_of([[0.2], [0.1]]) == {(0, 0)}
    # ... but for its own best box: box 1 gets none.
    assert pairs_of([[0.3, 0.2], [0.1, 0.1]]) == {(0, 0)}


def test_at_most_top_k():
    quality = [[0.9 - 0.01 * i] for i in range(20)]
    assert pairs_of(quality, top_k=6) == {(i, 0) for i in range(6)}
    assert pairs_of(quality, top_k=30) == {(i, 0) for i in range(20)}


def test_of_equal_boxes_the_first_gets_the_vote():
    assert pairs_of([[0.5, 0.5], [0.0, 0.0]]) == {(0, 0)}


def test_votes_beyond_the_limit_are_drawn():
    quality = [[0.9, 0.0]] * 10 + [[0.0, 0.9]] * 10
    assert len(pairs_of(quality, max_votes=5)) == 5
    assert len(pairs_of(quality, max_votes=20)) == 12


def make_batch() -> tuple[Predictions, Targets]:
    truth = Boxes(torch.tensor([[0.0, 0.0, 5.0, 5.0], [5.0, 5.0, 10.0, 10.0]]))
    instances = [
        Instances((10, 10), gt_boxes=truth, gt_classes=torch.tensor([1, 0])),
        Instances((10, 10), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long)),
    ]
    targets = Targets.from_instances(instances, (0, 1), torch.device("cpu"))
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.25], [0.5, 0.5, 0.1, 0.1]]).expand(1, 2, 3, 4)
    return Predictions(torch.zeros(1, 2, 3, 2), boxes), targets


def test_quality_is_score_and_iou():
    quality = MatchingQuality(score_weight=0.3, iou_weight=0.7)(*make_batch())[0, 0]
    torch.testing.assert_close(quality[0], torch.tensor([0.15 + 0.7, 0.15]), atol=1e-4, rtol=0)
    torch.testing.assert_close(quality[1], torch.tensor([0.15, 0.15 + 0.35]), atol=1e-4, rtol=0)


def test_images_without_boxes():
    pairs = VotingAssigner(MatchingQuality()).assign(*make_batch())
    found = torch.stack([pairs.layer, pairs.image, pairs.query, pairs.truth], dim=1)
    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]


def test_anchors_are_matched_instead_of_boxes():
    predictions, targets = make_batch()
    cost = MatchingCost(class_weight=0.0)
    swapped = Predictions(predictions.logits, predictions.boxes.flip(2), anchors=predictions.boxes)
    expected = HungarianMatcher(cost).assign(predictions, targets)
    found = AnchorMatcher(cost).assign(swapped, targets)
    assert found.query.tolist() == expected.query.tolist() and found.truth.tolist() == expected.truth.tolist()
    with pytest.raises(ValueError, match="have no anchors"):
        AnchorMatcher(cost).assign(predictions, targets)


def test_class_target_of_a_query_with_several_boxes():
    """Query 0 answers for both boxes, of classes 1 and 0."""
    predictions, targets = make_batch()
    both = Assignment(*torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]]))
    last = Assignment(*torch.tensor([[0], [0], [0], [1]]))
    losses = {only: FocalLoss(last_class_only=only)(predictions, targets, both) for only in (False, True)}
    torch.testing.assert_close(losses[True], FocalLoss()(predictions, targets, last))
    assert losses[False] < losses[True]  # at score 0.5 a positive costs alpha = 0.25, a negative 0.75


def test_aligned_target_of_a_query_with_several_boxes_of_a_class():
    """Query 0 fits box 0 and not box 1."""
    predictions, targets = make_batch()
    targets = targets.class_agnostic()
    both = Assignment(*torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]]))
    for only, kept in ((False, 0), (True, 1)):
        expected = IABCELoss()(predictions, targets, Assignment(*torch.tensor([[0], [0], [0], [kept]])))
        torch.testing.assert_close(IABCELoss(last_box_only=only)(predictions, targets, both), expected)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"max_votes": 0}])
def test_errors(options: dict):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        VotingAssigner(MatchingQuality(), **options)
