import types

import pytest
import torch

from detrx.coco.results import CollectedResults, to_results, with_category_ids
from detrx.d2.structures import Boxes, Instances
from detrx.errors import UserError


def instances(label):
    boxes = Boxes(torch.tensor([[1.0, 2.0, 4.0, 6.0]]))
    return Instances((9, 9), pred_boxes=boxes, scores=torch.tensor([0.5]), pred_classes=torch.tensor([label]))


def result(image_id, category_id):
    return {"image_id": image_id, "category_id": category_id, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_conversion():
    found = to_results(instances(1), "a")
    assert found == [result("a", 1)]
    assert with_category_ids(found, {7: 0, 9: 1}) == [result("a", 9)]
    assert with_category_ids(found, None) == found
    with pytest.raises(UserError, match="image a has class 1, but the dataset has 1 classes"):
        with_category_ids(found, {7: 0})


def two_processes(is_main):
    """Like `comm` of one of two processes, of which the other one has found an object of class 5 in image 2."""
    return types.SimpleNamespace(
        synchronize=lambda: None,
        gather=lambda mine, dst: [mine, [[result(2, 5)]]] if is_main else [],
        is_main_process=lambda: is_main,
    )


def test_detections_of_all_processes_are_gathered_on_the_main_one():
    inputs = [{"image_id": 1}, {"image_id": 3}]
    outputs = [{"instances": instances(4)}, {"panoptic_seg": None}]
    for distributed, is_main, expected in [
        (False, True, [result(1, 4)]),
        (True, True, [result(1, 4), result(2, 5)]),
        (True, False, None),
    ]:
        collected = CollectedResults(distributed, two_processes(is_main))
        collected.add(inputs, outputs)
        assert collected.gather() == expected
    collected.clear()
    assert collected.gather() is None


def test_no_image_and_no_detection_are_not_the_same(caplog):
    collected = CollectedResults(False, two_processes(True))
    assert collected.gather() is None and "no predictions" in caplog.text
    collected.add([{"image_id": 1}], [{"instances": instances(0)[:0]}])
    assert collected.gather() == []
