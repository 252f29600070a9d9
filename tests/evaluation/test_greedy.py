import numpy as np

from detrx.evaluation.greedy import match_greedily


def test_the_best_detection_takes_the_object_that_it_prefers():
    preference = np.array([[0.6, 0.9, -1], [-1, 0.95, 0.2], [0.7, 0.8, -1], [-1, -1, -1]])
    assert match_greedily(preference).tolist() == [1, 2, 0, -1]
    assert preference[1, 1] == 0.95  # is not changed


def test_a_preference_of_zero_counts_and_the_first_of_equal_objects_is_taken():
    assert match_greedily(np.zeros((3, 2))).tolist() == [0, 1, -1]


def test_without_detections_or_objects():
    assert match_greedily(np.zeros((0, 3))).tolist() == []
    assert match_greedily(np.zeros((2, 0))).tolist() == [-1, -1]
