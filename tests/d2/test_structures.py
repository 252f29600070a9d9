"""Contract of `detrx.d2.structures` and `detrx.d2.modeling`, whichever provider is active."""

import copy
import pickle

import numpy as np
import pytest
import torch

from detrx.d2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detrx.d2.structures import Boxes, BoxMode, ImageList, Instances, pairwise_iou


def test_box_mode_values_are_those_in_files():
    assert [m.value for m in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYXY_REL, BoxMode.XYWHA_ABS)] == [0, 1, 2, 4]
    assert BoxMode(1) is BoxMode.XYWH_ABS


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
def test_box_mode_convert(make):
    xywh, xyxy = [[1.0, 2.0, 3.0, 4.5]], [[1.0, 2.0, 4.0, 6.5]]
    box, expected = (make(xywh[0]), xyxy[0]) if make in (list, tuple) else (make(xywh), xyxy)
    before = copy.deepcopy(box)
    converted = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(converted) is type(box)
    assert np.array_equal(np.asarray(converted), np.asarray(expected))
    assert np.array_equal(np.asarray(box), np.asarray(before))
    back = BoxMode.convert(converted, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert np.array_equal(np.asarray(back), np.asarray(before))


def test_box_mode_convert_details():
    box = [1, 2, 3, 4]
    assert BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYWH_ABS) is box
    assert BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == [1, 2, 4, 6]
    # single boxes are computed in float32
    assert BoxMode.convert([0.1, 0.2, 0.3, 0.4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == [
        0.10000000149011612,
        0.20000000298023224,
        0.4000000059604645,
        0.6000000238418579,
    ]
    array = np.array([[0.1, 0.2, 0.3, 0.4]])
    assert BoxMode.convert(array, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)[0, 2] == 0.1 + 0.3
    with pytest.raises((NotImplementedError, AssertionError)):
        BoxMode.convert(array, BoxMode.XYWH_ABS, BoxMode.XYXY_REL)


def test_boxes():
    boxes = Boxes([[0, 0, 10, 20], [5, 5, 5, 9], [-3, -4, 30, 50]])
    assert boxes.tensor.dtype == torch.float32 and len(boxes) == 3
    assert boxes.area().tolist() == [200, 0, 33 * 54]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=15).tolist() == [False, False, True]
    assert Boxes(boxes.tensor.double()).tensor.dtype == torch.float32
    assert Boxes(torch.zeros(0)).tensor.shape == (0, 4) and Boxes([]).tensor.shape == (0, 4)
    with pytest.raises(AssertionError):
        Boxes(torch.zeros(3, 5))

    assert boxes[0].tensor.tolist() == [[0, 0, 10, 20]] and boxes[-1].tensor[0, 0] == -3
    assert len(boxes[1:]) == 2 and len(boxes[torch.tensor([True, False, True])]) == 2
    assert boxes[torch.tensor([2, 0])].tensor[:, 3].tolist() == [50, 20]
    assert torch.stack(list(boxes)).equal(boxes.tensor)
    assert boxes.to("cpu").device == torch.device("cpu")


def test_boxes_change_in_place_or_not():
    tensor = torch.tensor([[-3.0, -4.0, 30.0, 50.0]])
    boxes = Boxes(tensor)
    boxes.clip((40, 20))
    assert boxes.tensor.tolist() == [[0, 0, 20, 40]]
    assert tensor.tolist() == [[-3, -4, 30, 50]]  # clip makes a new tensor
    boxes = Boxes(tensor)
    boxes.scale(2, 0.5)
    assert tensor.tolist() == [[-6, -2, 60, 25]]  # scale does not
    with pytest.raises(AssertionError):
        Boxes(torch.tensor([[0, 0, float("nan"), 1]])).clip((5, 5))


def test_pairwise_iou():
    a = Boxes([[0, 0, 2, 2], [0, 0, 0, 0]])
    b = Boxes([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert torch.allclose(pairwise_iou(a, b), torch.tensor([[1, 1 / 7, 0, 0.25, 0], [0, 0, 0, 0, 0]]))
    assert pairwise_iou(a, Boxes([])).shape == (2, 0)


def make_instances(n=3):
    return Instances(
        (10, 20), boxes=Boxes(torch.arange(4.0 * n).view(n, 4)), scores=torch.arange(n), names=list("abcd")[:n]
    )


def test_instances_fields():
    instances = make_instances()
    assert len(instances) == 3 and instances.image_size == (10, 20)
    instances.labels = torch.ones(3)
    assert instances.has("labels") and instances.get("labels") is instances.labels
    assert set(instances.get_fields()) == {"boxes", "scores", "names", "labels"}
    instances.remove("labels")
    assert not instances.has("labels") and not hasattr(instances, "labels")
    with pytest.raises(AssertionError):
        instances.labels = torch.ones(2)
    with pytest.raises(AttributeError, match="other"):
        _ = instances.other
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(instances)
    assert "3" in str(instances) and "boxes" in repr(instances)


def test_instances_indexing_moving_and_copying():
    instances = make_instances()
    last = instances[-1]
    assert len(last) == 1 and last.scores.tolist() == [2] and last.names == ["c"] and last.image_size == (10, 20)
    assert instances[:2].names == ["a", "b"]
    with pytest.raises(IndexError):
        instances[3]
    instances.remove("names")
    assert instances[torch.tensor([2, 0])].scores.tolist() == [2, 0]
    assert instances[instances.scores > 0].boxes.tensor[:, 0].tolist() == [4, 8]
    moved = instances.to(torch.device("cpu"))
    assert moved is not instances and moved.scores.equal(instances.scores)
    for twin in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert twin.image_size == (10, 20) and twin.boxes.tensor.equal(instances.boxes.tensor)


@pytest.mark.parametrize(("divisibility", "size"), [(0, (5, 7)), (1, (5, 7)), (4, (8, 8)), (32, (32, 32))])
def test_image_list(divisibility, size):
    images = [torch.full((3, 5, 4), 2.0), torch.full((3, 2, 7), 3.0)]
    batch = ImageList.from_tensors(images, divisibility, pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, *size) and len(batch) == 2
    assert [tuple(s) for s in batch.image_sizes] == [(5, 4), (2, 7)]
    assert batch[0].equal(images[0]) and batch[1].equal(images[1])
    assert (batch.tensor == -1).sum() == 2 * 3 * size[0] * size[1] - 3 * (20 + 14)
    assert batch.to(torch.float64).tensor.dtype == torch.float64 and batch.device == torch.device("cpu")
    single = ImageList.from_tensors(images[:1], divisibility)
    assert single.tensor.shape[:2] == (1, 3) and single[0].equal(images[0])


def test_image_list_of_bytes_and_masks():
    batch = ImageList.from_tensors([torch.ones(2, 3, dtype=torch.uint8), torch.ones(1, 4, dtype=torch.uint8)])
    assert batch.tensor.dtype == torch.uint8 and batch.tensor.tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 0]],
        [[1, 1, 1, 1], [0, 0, 0, 0]],
    ]


def test_detector_postprocess():
    tensor = torch.tensor([[1.0, 2.0, 4.0, 6.0], [9.0, 1.0, 30.0, 4.0], [20.0, 0.0, 30.0, 5.0], [3.0, 3.0, 3.0, 5.0]])
    results = Instances((10, 20), pred_boxes=Boxes(tensor), scores=torch.arange(4.0), pred_classes=torch.arange(4))
    out = detector_postprocess(results, 25, 30)
    assert out.image_size == (25, 30)
    assert out.pred_boxes.tensor.tolist() == [[1.5, 5.0, 6.0, 15.0], [13.5, 2.5, 30.0, 10.0]]  # clipped or dropped
    assert out.scores.tolist() == [0, 1] and out.pred_classes.tolist() == [0, 1]
    assert tensor[0].tolist() == [1.5, 5.0, 6.0, 15.0]  # scaled in place
    with pytest.raises(AssertionError):
        detector_postprocess(Instances((10, 20), scores=torch.ones(1)), 25, 30)


def test_registry():
    @META_ARCH_REGISTRY.register()
    class DetectorOfThisTest:
        pass

    assert META_ARCH_REGISTRY.get("DetectorOfThisTest") is DetectorOfThisTest
    with pytest.raises(KeyError, match="NoSuchArch"):
        META_ARCH_REGISTRY.get("NoSuchArch")
