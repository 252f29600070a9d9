"""The boxes that a model is trained on, and those that warnings say are left out, are all that evaluation counts."""

import json
import logging

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detrx.coco.annotations import parse_coco
from detrx.coco.problems import Findings
from detrx.d2.structures import BoxMode
from detrx.data import DetectionMapper, load_coco
from detrx.data.check.boxes import check_boxes
from detrx.evaluation import coco_api, read_ground_truth
from tests.coco.strategies import unique_ids

WIDTH, HEIGHT = 40, 30
COORDINATES = st.one_of(
    st.sampled_from([-10, -1e-6, 0, 1e-6, 1e-5, 2e-5, 5, 29.999999, 30, 39.9999, 40, 40.000001, 1e6]),
    st.floats(-50, 50, width=32),
)
SIDES = st.one_of(st.sampled_from([-3, 0, 1e-7, 1e-5, 1.1e-5, 0.5, 12, 1e6]), st.floats(-2, 60, width=32))
SEGMENTATIONS = st.sampled_from(
    [None, [], [[]], [[1, 2, 3, 4]], [[0, 0, 5, 0, 5, 5]], [[1, 2, 3], []], [3], "x", {"size": [2, 2]}, {}]
    + [{"size": [2, 2], "counts": [1, 3]}, {"size": [2, 2], "counts": "03"}]
)


@st.composite
def files(draw):
    """Every annotation is of a class of its own, so that it is known again after the mapper."""
    image_ids = draw(unique_ids(1, 3))
    ids = draw(unique_ids(1, 8))
    annotations = []
    for number, annotation_id in enumerate(ids):
        entry = {
            "id": annotation_id,
            "image_id": draw(st.sampled_from([*image_ids, "none of them"])),
            "category_id": number,
            "bbox": [draw(COORDINATES), draw(COORDINATES), draw(SIDES), draw(SIDES)],
        }
        entry |= draw(st.sampled_from([{}, {"iscrowd": 0}, {"iscrowd": 0, "area": 3}, {"iscrowd": 1}]))
        segmentation = draw(SEGMENTATIONS)
        annotations.append(entry if segmentation is None else {**entry, "segmentation": segmentation})
    images = [{"id": i, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k, i in enumerate(image_ids)]
    categories = [{"id": number, "name": f"class {number}"} for number in range(len(ids))]
    return {"images": images, "annotations": annotations, "categories": categories}


@given(content=files())
def test_training_and_evaluation_count_the_same_boxes(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "random.json"
    file.write_text(json.dumps(content))
    logging.disable(logging.WARNING)
    try:
        records = load_coco(file, "")
        evaluated = coco_api(read_ground_truth(file)).dataset["annotations"]
    finally:
        logging.disable(logging.NOTSET)

    findings = Findings(max_examples=100)
    table = check_boxes(records, findings)
    empty, outside = table.left_out()
    warned = {int(table.classes[i]) for i in range(len(table.classes)) if (empty | outside)[i] and not table.crowd[i]}
    counts = {entry["kind"]: entry["count"] for entry in findings.entries()}
    assert sum(counts.get(kind, 0) for kind in ("no-extent", "outside")) == len(warned)

    mapper = DetectionMapper(is_train=True)
    mapped = [mapper({**record, "image": Image.new("RGB", (WIDTH, HEIGHT))})["instances"] for record in records]
    trained = torch.cat([each.gt_classes for each in mapped]).tolist()
    assert len(trained) == len(set(trained)) and not set(trained) & warned
    objects = [each["category_id"] - 1 for each in evaluated if not each["iscrowd"]]  # ids of our own begin with 1
    assert len(objects) == len(set(objects)) and set(objects) == {*trained, *warned}

    strays = Findings()
    parse_coco(content, "", BoxMode.XYWH_ABS, strays)
    counts = {entry["kind"]: entry["count"] for entry in strays.entries()}
    assert len(evaluated) + counts.get("stray-annotation", 0) == len(content["annotations"])
    assert (table.why_nothing_to_learn() is None) == bool(trained)
