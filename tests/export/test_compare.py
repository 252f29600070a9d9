"""Detections are compared whatever the order of equal scores."""

import pytest
import torch

from detrx.export import check_same_detections, detection_difference, example_images

SIZE = (100, 200)


def detections():
    boxes = torch.tensor([[[10.0, 20, 30, 40], [50, 20, 90, 40], [20, 60, 60, 80], [0, 0, 200, 100]]])
    return boxes, torch.tensor([[0.9, 0.6, 0.6, 0.1]]), torch.tensor([[3, 1, 1, 7]])


def changed(position: int, value: torch.Tensor):
    found = [each.clone() for each in detections()]
    found[position][:] = value
    return found


def difference(found) -> float:
    return detection_difference(detections(), found, SIZE)


def test_equal_scores_may_be_in_any_order():
    order = torch.tensor([0, 2, 1, 3])
    assert difference([each[:, order] for each in detections()]) == 0


def test_box_coordinates_count_as_parts_of_the_image():
    moved = detections()[0].clone()
    moved[0, 0] += torch.tensor([0, 2.0, 0, 0])
    assert difference(changed(0, moved)) == pytest.approx(0.02)
    moved[0, 0] += torch.tensor([8.0, 0, 0, 0])
    assert difference(changed(0, moved)) == pytest.approx(0.04)


def test_scores_count_as_they_are():
    assert difference(changed(1, torch.tensor([0.8, 0.6, 0.6, 0.1]))) == pytest.approx(0.1)


def test_a_detection_of_another_class_or_place_has_no_partner():
    assert difference(changed(2, torch.tensor([3, 1, 2, 7]))) == float("inf")
    missing = detections()[0][:, [0, 1, 1, 3]]
    assert difference(changed(0, missing)) == pytest.approx(0.4)


def test_only_what_rounding_may_cut_off_needs_no_partner():
    boxes, scores, labels = detections()
    other = [boxes.clone(), scores + 1e-6, labels.clone()]
    other[2][0, 3] = 8
    assert detection_difference((boxes, scores, labels), other, SIZE) == pytest.approx(1e-6, rel=0.1)
    scores[0, 3] = 0.2
    other[2][0, 2], other[1][0, 3] = 8, 0.2
    assert detection_difference((boxes, scores, labels), other, SIZE) == float("inf")


def test_a_wrong_graph_is_refused():
    batches = [example_images(1, SIZE, "uint8", seed) for seed in range(2)]
    right = [detections(), changed(1, torch.tensor([0.9, 0.6, 0.6, 0.0999]))]
    graph = dict(zip((id(batch) for batch in batches), right, strict=True))
    assert check_same_detections(lambda x: graph[id(x)], batches, lambda x: detections()) == pytest.approx(
        1e-4, rel=0.1
    )
    with pytest.raises(ValueError, match=r"differ from the detector's by 1.0e-04 .* more than 1e-05"):
        check_same_detections(lambda x: graph[id(x)], batches, lambda x: detections(), 1e-5)
    with pytest.raises(ValueError, match="by nan"):
        check_same_detections(lambda x: changed(1, torch.nan), batches, lambda x: detections())


def test_example_images():
    images = example_images(2, (40, 60), "uint8", 0)
    assert images.shape == (2, 3, 40, 60) and images.dtype == torch.uint8 and images.float().std() > 30
    assert not torch.equal(images, example_images(2, (40, 60), "uint8", 1))
