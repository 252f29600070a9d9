"""Non-maximum suppression of saved detections, and their limits."""

import json

import numpy as np
import pytest
import torchvision

from detrx.evaluation import evaluate_file
from detrx.evaluation.nms import without_duplicates
from detrx.evaluation.saved import tables
from tests.coco.cases import found, ground_truth


def random_detections(seed, images=6, classes=3, count=400):
    """Many duplicates, equal boxes, equal scores and boxes without extent."""
    rng = np.random.RandomState(seed)
    boxes = np.concatenate([rng.randint(0, 30, (count, 2)), rng.randint(0, 12, (count, 2))], axis=1)
    ids = [int(i) if i % 2 else str(i) for i in rng.randint(0, images, count)]
    labels = [int(i) if i % 2 else f"class {i}" for i in rng.randint(0, classes, count)]
    return found(*zip(ids, labels, boxes.tolist(), (rng.randint(0, 9, count) / 10).tolist(), strict=True))


def one_by_one(detections, threshold):
    """By the definition: the best is kept, and those of its image and class that overlap it too much go."""

    def overlap(a, b):
        (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
        width = max(0.0, min(ax + aw, bx + bw) - max(ax, bx))
        height = max(0.0, min(ay + ah, by + bh) - max(ay, by))
        union = aw * ah + bw * bh - width * height
        return width * height / union if union else 0.0

    left, kept = sorted(range(len(detections)), key=lambda i: -detections[i]["score"]), []
    while left:
        best, *left = left
        kept.append(best)
        key = [(detections[i]["image_id"], detections[i]["category_id"]) for i in (best, *left)]
        left = [
            i
            for i, own in zip(left, key[1:], strict=True)
            if own != key[0] or overlap(detections[best], detections[i]) <= threshold
        ]
    return [detections[i] for i in sorted(kept)]


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_are_left_out_by_image_and_class(seed, threshold):
    detections = random_detections(seed)
    kept = without_duplicates(detections, threshold)
    assert kept == one_by_one(detections, threshold)
    assert len(kept) < len(detections) or threshold > 0.5


def test_the_work_grows_with_the_number_of_images_and_not_with_its_square(monkeypatch):
    sizes = []
    nms = torchvision.ops.nms

    def counted(boxes, scores, threshold):
        sizes.append(len(boxes))
        return nms(boxes, scores, threshold)

    monkeypatch.setattr("torchvision.ops.nms", counted)
    monkeypatch.setattr("torchvision.ops.batched_nms", None)
    detections = random_detections(0, images=500, count=6000)
    assert 0 < len(without_duplicates(detections, 0.5)) < 6000
    assert max(sizes) < 25 and sum(sizes) <= 6000


def test_nothing_and_thresholds_that_are_none():
    assert without_duplicates([], 0.5) == []
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5"):
        without_duplicates(random_detections(0), 1.5)


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_the_limit_of_detections(tmp_path, use_fast_impl):
    truth = ground_truth([("a", 3, [0, 0, 10, 10], {}), ("a", 8, [0, 0, 10, 10], {})], images=("a",))
    truth["categories"] = [{"id": 3, "name": "cup"}, {"id": 8, "name": "cup"}]
    results = found(("a", 3, [100, 0, 10, 10], 0.9), ("a", 3, [0, 0, 10, 10], 0.8), ("a", 8, [0, 0, 10, 10], 0.8))
    for name, content in (("truth.json", truth), ("results.json", results)):
        (tmp_path / name).write_text(json.dumps(content))

    def score(limit):
        return evaluate_file(tmp_path / "results.json", tmp_path / "truth.json", limit, use_fast_impl)

    assert score(1)["AP"]["AP"] == pytest.approx(50) and list(score(1)["AR"]) == ["AR1", "ARs", "ARm", "ARl"]
    assert score(5)["AP"]["AP"] == pytest.approx(75) and list(score(5)["AR"])[:2] == ["AR1", "AR5"]
    assert list(score(None)["AR"])[:3] == ["AR1", "AR10", "AR100"]
    with pytest.raises(ValueError, match="max_dets_per_image must be a positive whole number, got 0"):
        score(0)
    lines = tables(score(5), per_class=True).replace(" ", "")
    assert "|cup(3)|50.000|cup(8)|100.000|" in lines
    assert [each["name"] for each in score(5)["per_class"]] == ["cup", "cup"]
