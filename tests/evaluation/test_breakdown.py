import copy

import numpy as np
import pytest

from detrx.evaluation import class_names, confusion_matrix, precision_recall, scores_by_size
from tests.coco.cases import found, ground_truth, random_case

CUP, FORK = 3, 8
A, B, C = [0, 0, 10, 10], [100, 0, 40, 40], [0, 80, 100, 100]
THREE = ground_truth([(1, CUP, A, {}), (1, CUP, B, {}), (2, FORK, C, {})], images=(1, 2, 4))


def test_class_names_are_by_id():
    content = {"categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}]}
    assert class_names(content) == ["a", "b"]
    content = {"categories": [{"id": "x", "name": "a"}, {"id": 2, "name": "a"}, {"id": -1, "name": "b"}]}
    assert class_names(content) == ["b", "a (2)", "a (x)"]


def test_ids_of_any_kind():
    """1 and "1" are not the same."""
    content = ground_truth([(1, 1, A, {}), ("1", "1", A, {"id": 0})], images=(1, "1"), categories={"1": "b", 1: "a"})
    results = found((1, 1, A, 0.9), ("1", 1, A, 0.8))
    assert confusion_matrix(content, results).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    curves = precision_recall(content, results)
    assert curves.names == ["a", "b"] and curves.average_precision.tolist() == pytest.approx([100, 0])
    assert scores_by_size(content, results)["small"] == pytest.approx({"AP": 50, "AR": 50, "objects": 2})


def test_the_limit_of_detections():
    results = found((1, CUP, [100, 80, 10, 10], 0.9), (1, CUP, A, 0.8))
    assert precision_recall(THREE, results, max_dets_per_image=1).average_precision.tolist() == [0, 0]
    assert precision_recall(THREE, results, max_dets_per_image=2).average_precision[0] == pytest.approx(50 * 51 / 101)
    assert scores_by_size(THREE, results, 1)["small"]["AR"] == 0
    assert scores_by_size(THREE, results, 2)["small"]["AR"] == pytest.approx(100)


def test_confusions_by_hand():
    results = found(
        (1, CUP, A, 0.9),  # right
        (1, FORK, B, 0.8),  # a cup taken for a fork
        (1, CUP, [100, 80, 10, 10], 0.7),  # nothing there
        (2, FORK, [0, 80, 50, 80], 0.6),  # IoU 0.4: not enough
        (4, FORK, A, 0.5),  # nothing in this image
        (2, FORK, C, 0.29),  # score too low
    )
    expected = np.array([[1, 1, 0], [0, 0, 1], [1, 2, 0]])
    assert confusion_matrix(THREE, results).tolist() == expected.tolist()
    expected[1] += (0, 1, -1)  # the fork is found by either
    assert confusion_matrix(THREE, results, score_threshold=0.29).tolist() == expected.tolist()
    expected[2, 1] -= 1
    lower = confusion_matrix(THREE, results[:-1], iou_threshold=0.4)
    assert lower.tolist() == expected.tolist()


def test_the_own_class_comes_first_then_the_overlap():
    content = ground_truth([(1, CUP, [0, 0, 100, 100], {}), (1, FORK, [0, 0, 100, 90], {})])
    results = found((1, FORK, [0, 0, 100, 100], 0.9), (1, CUP, [0, 0, 100, 80], 0.8))
    assert confusion_matrix(content, results).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    content = ground_truth([(1, CUP, [0, 0, 100, 60], {}), (1, CUP, [0, 0, 100, 90], {})])
    results = found((1, CUP, [0, 0, 100, 100], 0.9), (1, CUP, [0, 0, 100, 90], 0.8))
    # the first takes the one with IoU 0.9, for the second only the other one (IoU 0.67) is left
    assert confusion_matrix(content, results).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert confusion_matrix(content, results, iou_threshold=0.7).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_the_higher_score_takes_the_object():
    results = found((1, FORK, A, 0.5), (1, CUP, A, 0.6))
    content = ground_truth([(1, CUP, A, {})])
    assert confusion_matrix(content, results).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    results[0]["score"] = 0.7
    assert confusion_matrix(content, results).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_crowds_are_no_objects_and_excuse_detections_of_their_class():
    content = ground_truth([(1, CUP, [0, 0, 100, 100], {"iscrowd": 1})])
    inside = [20, 20, 10, 10]
    assert not confusion_matrix(content, found((1, CUP, inside, 0.9), (1, CUP, inside, 0.8))).any()
    assert confusion_matrix(content, found((1, FORK, inside, 0.9)))[2].tolist() == [0, 1, 0]
    assert confusion_matrix(content, found((1, CUP, [96, 0, 10, 10], 0.9)))[2].tolist() == [1, 0, 0]


def test_annotations_of_unlisted_images_do_not_count():
    content = ground_truth([(1, CUP, A, {}), (7, FORK, A, {})])
    assert confusion_matrix(content, []).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert scores_by_size(content, [])["small"]["objects"] == 1


def test_confusions_of_nothing():
    assert confusion_matrix(THREE, []).tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]
    assert not confusion_matrix(ground_truth([]), []).any()


def test_every_object_and_every_detection_is_counted_once():
    content, results = random_case(0)
    before = copy.deepcopy((content, results))
    matrix = confusion_matrix(content, results, score_threshold=0.25)
    assert (content, results) == before
    ids = [entry["id"] for entry in content["categories"]]
    per_class = [sum(a["category_id"] == i and not a["iscrowd"] for a in content["annotations"]) for i in ids]
    assert matrix[:-1].sum(1).tolist() == per_class
    counted = [sum(r["category_id"] == i and r["score"] >= 0.25 for r in results) for i in ids]
    excused = np.array(counted) - matrix.sum(0)[:-1]
    assert (excused >= 0).all() and 0 < excused.sum() < 0.1 * sum(counted)


def test_precision_over_recall_by_hand():
    # cups by score: right, wrong, right
    results = found((1, CUP, A, 0.9), (2, CUP, A, 0.8), (1, CUP, [100, 0, 40, 36], 0.7))
    curves = precision_recall(THREE, results)
    assert curves.names == ["cup", "fork"]
    assert curves.recall.tolist() == pytest.approx([i / 100 for i in range(101)])
    assert curves.precision[0].tolist() == pytest.approx([1.0] * 51 + [2 / 3] * 50)
    assert curves.score[0].tolist() == [0.9] * 51 + [0.7] * 50
    assert curves.precision[1].tolist() == [0.0] * 101  # a fork that is not found
    assert curves.average_precision.tolist() == pytest.approx([100 * (51 + 50 * 2 / 3) / 101, 0])
    strict = precision_recall(THREE, results, iou_threshold=0.95)  # the last one has an IoU of 0.9
    assert strict.precision[0].tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)


def test_curves_of_classes_without_objects():
    curves = precision_recall(ground_truth([(1, CUP, A, {})]), found((1, FORK, A, 0.5)))
    assert np.isnan(curves.precision[1]).all() and np.isnan(curves.score[1]).all()
    assert curves.average_precision.tolist() == pytest.approx([0, np.nan], nan_ok=True)


def test_only_the_thresholds_of_coco():
    with pytest.raises(ValueError, match=r"iou_threshold must be one of .*0\.52"):
        precision_recall(THREE, [], 0.52)
    assert precision_recall(THREE, [], 0.6).average_precision.tolist() == [0, 0]


def test_scores_by_size_by_hand():
    # a small cup found at all thresholds, one of medium size at 0.5 to 0.9, a large fork not found
    results = found((1, CUP, A, 0.9), (1, CUP, [100, 0, 40, 36], 0.8))
    scores = scores_by_size(THREE, results)
    assert list(scores) == ["small", "medium", "large"]
    assert scores["small"] == pytest.approx({"AP": 100, "AR": 100, "objects": 1})
    assert scores["medium"] == pytest.approx({"AP": 90, "AR": 90, "objects": 1})
    assert scores["large"] == pytest.approx({"AP": 0, "AR": 0, "objects": 1})
    crowd = ground_truth([(1, CUP, A, {"iscrowd": 1})])
    assert scores_by_size(crowd, [])["small"] == pytest.approx({"AP": np.nan, "AR": np.nan, "objects": 0}, nan_ok=True)


@pytest.mark.parametrize("function", [confusion_matrix, precision_recall, scores_by_size])
def test_faulty_detections_are_refused(function):
    with pytest.raises(ValueError, match=r"results: entry 1 has image_id 9, which is not"):
        function(THREE, found((1, CUP, A, 0.5), (9, CUP, A, 0.5)))
