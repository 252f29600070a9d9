import json
from pathlib import Path

import pytest

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
