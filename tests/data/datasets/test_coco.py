import json
import logging
from pathlib import Path

import pytest

from detrx.d2 import USE_DETECTRON2
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.data import datasets_root, get_detection_dataset_dicts, load_coco


@pytest.fixture
def coco():
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


@pytest.fixture
def register(tmp_path):
    """Register a dataset with an annotation file, through either provider's own function."""
    names = []

    def _register(text, **metadata):
        name = f"detrx_test_{len(names)}"
        names.append(name)
        path = tmp_path / f"{name}.json"
        if text is not None:
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        register_coco_instances(name, metadata, str(path), str(tmp_path))
        return name

    yield _register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_load(register, coco, tmp_path):
    (record,) = get_detection_dataset_dicts(register(coco))
    assert (record["width"], record["height"], record["image_id"]) == (20, 10, 7)
    assert record["file_name"] == str(tmp_path / "a.png")
    assert record["annotations"][0]["category_id"] == 1  # contiguous
    assert record["annotations"][0]["bbox"] == [1, 2, 3, 4]


def test_load_coco_without_name_keeps_category_ids(coco, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco))
    assert load_coco(path, tmp_path)[0]["annotations"][0]["category_id"] == 3


def test_images_without_objects_are_kept_only_on_request(register, coco):
    coco["images"].append({"id": 8, "file_name": "b.png", "width": 20, "height": 10})
    name = register(coco)
    assert [r["image_id"] for r in get_detection_dataset_dicts(name)] == [7]
    assert [r["image_id"] for r in get_detection_dataset_dicts([name], filter_empty=False)] == [7, 8]


def test_unknown_dataset_name():
    with pytest.raises(ValueError, match=r"'digits_trian' is not registered.*digits_train"):
        get_detection_dataset_dicts("digits_trian")


def test_missing_file(register):
    name = register(None)
    with pytest.raises(FileNotFoundError, match=rf"{name}\.json of dataset '{name}' does not exist"):
        get_detection_dataset_dicts(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: json.dumps(c)[:-20], "not valid JSON"),
        (lambda c: [c], "expected an object with images, annotations, categories, got a list"),
        (lambda c: c.pop("images") and c, "no list 'images'"),
        (lambda c: c["images"][0].pop("width") and c, r"images\[0\] has no 'width'"),
        (lambda c: c["annotations"][0].update(category_id=2) or c, "category_id 2, which is not in 'categories'"),
        (lambda c: c["annotations"].append(c["annotations"][0]) or c, "annotation id 1 occurs twice"),
        (lambda c: c["annotations"][0].update(bbox=[]) or c, r"bbox \[\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]) or c, r"bbox \[1, 2, 3\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3]) or c, r"bbox \[1, 2, nan, 3\]"),
    ],
)
def test_faulty_file(register, coco, damage, message):
    name = register(damage(coco))
    with pytest.raises(ValueError, match=rf"{name}\.json.*{message}"):
        get_detection_dataset_dicts(name)


@pytest.mark.parametrize("section", ["images", "categories"])
def test_ids_that_occur_twice(register, coco, tmp_path, section):
    """Readers that put entries into a dict keep the last one, silently."""
    coco[section].append(coco[section][0] | {"name": "horse", "file_name": "b.png"})
    name = register(coco)
    with pytest.raises(ValueError, match=rf"{name}\.json: .* id {coco[section][0]['id']} occurs twice"):
        load_coco(tmp_path / f"{name}.json", tmp_path)
    if not USE_DETECTRON2:  # whose reader of registered files does not look
        with pytest.raises(ValueError, match=rf"{name}\.json: .* id {coco[section][0]['id']} occurs twice"):
            get_detection_dataset_dicts(name)


@pytest.mark.skipif(not USE_DETECTRON2, reason="Detectron2 is not installed")
def test_records_are_those_of_detectron2(register, coco, tmp_path):
    """Gaps between ids, crowds and segmentations included."""
    from detectron2.data.datasets import load_coco_json

    entry = coco["annotations"][0]
    coco["images"].insert(0, {"id": 9, "file_name": "b.png", "width": 30, "height": 20})
    coco["annotations"] += [
        entry | {"id": 5, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": [50, 50, 100]}},
        entry | {"id": 3, "image_id": 9, "category_id": 1, "segmentation": [[1, 2, 4, 2, 4, 6], [1, 2]]},
        entry | {"id": 4, "image_id": 9, "segmentation": [[1, 2, 3, 4]]},
        entry | {"id": 6, "image_id": 1000},
    ]
    name = register(coco)
    path = tmp_path / f"{name}.json"
    ours = load_coco(path, tmp_path, name)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 1}
    assert ours == load_coco_json(str(path), str(tmp_path), name)  # or it would refuse to change the metadata
    assert [len(record["annotations"]) for record in ours] == [2, 1]
    assert load_coco(path, tmp_path) == load_coco_json(str(path), str(tmp_path))


def test_warnings_come_once_per_kind_and_dataset(register, coco, caplog):
    entry = coco["annotations"][0]
    boxes = [[1, 1, 0, 4], [2, 1, 3, 0], [3, 3, -2, 4], [30, 1, 5, 5], [18, 1, 5, 5], [18, 8, 3, 3]]
    coco["annotations"] += [entry | {"id": 10 + k, "bbox": box} for k, box in enumerate(boxes)]
    name = register(coco)
    with caplog.at_level(logging.WARNING):
        assert len(get_detection_dataset_dicts(name)[0]["annotations"]) == 7
        get_detection_dataset_dicts(name, filter_empty=False)  # as for another evaluation
    found = [message for message in caplog.messages if message.startswith(f"dataset {name}")]
    assert len(found) == 3
    assert "boxes without width or height: left out of training (3)" in found[0]
    assert "a.png (20 x 10), bbox [1, 1, 0, 4]" in found[0]
    assert "boxes outside of the image: left out of training (1)" in found[1] and "bbox [30, 1, 5, 5]" in found[1]
    assert "boxes that reach more than one pixel beyond" in found[2] and "bbox [18, 1, 5, 5]" in found[2]


def test_warnings_about_a_file(coco, tmp_path, caplog):
    coco["annotations"].append({"id": 0, "image_id": 8, "category_id": 3, "bbox": [1, 2, 3, 4]})
    coco["annotations"].append({"id": 2, "image_id": 7, "category_id": 3.0, "bbox": [1, 2, 3, 4]})
    path = tmp_path / "warnings.json"
    path.write_text(json.dumps(coco))
    with caplog.at_level(logging.WARNING):
        (record,) = load_coco(path, tmp_path)
    assert [annotation["category_id"] for annotation in record["annotations"]] == [3, 3]
    stray, keys = caplog.messages
    assert stray.startswith(f"{path}: annotations of an image that is not listed")
    assert "annotation 0 refers to image 8" in stray
    assert "annotation 2" in keys and "pycocotools by itself cannot evaluate" in keys


def test_categories_other_than_the_registered_classes(register, coco):
    name = register(coco, thing_classes=["cat", "horse"])
    with pytest.raises(ValueError, match=r"categories \['cat', 'dog'\] are not the classes \['cat', 'horse'\]"):
        get_detection_dataset_dicts(name)


@pytest.mark.parametrize(("value", "expected"), [(None, "datasets"), ("", "datasets"), ("/elsewhere", "/elsewhere")])
def test_folder_of_datasets(monkeypatch, value: str | None, expected: str):
    """An empty variable is no folder: the current one must not fill with data."""
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if value is not None:
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
    assert datasets_root() == Path(expected)
