import torch

from detrx.d2.structures import Boxes, Instances
from detrx.data.batch import PinnableBatch, map_tensors


def test_only_images_and_tensors_of_instances_are_changed():
    polygons, other = [["a"], ["b"]], torch.ones(2)
    instances = Instances((4, 6), gt_boxes=Boxes(torch.ones(2, 4)), gt_classes=torch.ones(2), gt_masks=polygons)
    batch = [
        {"image": torch.ones(3, 4, 6), "instances": instances, "other": other, "image_id": 7},
        {"image": "not read yet", "instances": None},
        {},
    ]
    first, *rest = map_tensors(batch, lambda x: x + 1)
    assert (first["image"] == 2).all()
    assert first["other"] is other and first["image_id"] == 7
    changed = first["instances"]
    assert type(changed) is type(instances) and changed.image_size == (4, 6)
    assert type(changed.gt_boxes) is type(instances.gt_boxes) and (changed.gt_boxes.tensor == 2).all()
    assert (changed.gt_classes == 2).all() and changed.gt_masks is polygons
    assert rest == batch[1:]
    assert (batch[0]["image"] == 1).all() and (instances.gt_boxes.tensor == 1).all(), "the batch itself is as it was"


def test_a_batch_that_can_be_pinned_is_a_list(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: -tensor)
    batch = PinnableBatch([{"image": torch.ones(2), "image_id": 1}])
    assert isinstance(batch, list) and batch[0]["image_id"] == 1
    pinned = batch.pin_memory()
    assert type(pinned) is list and pinned[0]["image"].tolist() == [-1, -1] and pinned[0]["image_id"] == 1
