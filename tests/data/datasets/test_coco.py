import json
import logging
from pathlib import Path

import pytest

from detrx.d2 import USE_DETECTRON2
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.data import datasets_root, get_detection_dataset_dicts, load_coco
from detrx.data.check.dataset import check_dataset
from detrx.errors import UserError


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
        (lambda c: [c], "expected an object with images, annotations, categories, got list"),
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
    assert "boxes without width or height: left out of training, counted in evaluation (3)" in found[0]
    assert "a.png (20 x 10), bbox [1, 1, 0, 4]" in found[0]
    assert (
        "boxes outside of the image: left out of training, counted in evaluation (1)" in found[1]
        and "bbox [30, 1, 5, 5]" in found[1]
    )
    assert "boxes that reach more than one pixel beyond" in found[2] and "bbox [18, 1, 5, 5]" in found[2]


@pytest.mark.parametrize("unusable", [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[]] * 3, [5], {"size": [1, 1]}, "text"])
def test_a_box_whose_segmentation_cannot_be_used_is_kept(register, coco, caplog, unusable):
    coco["annotations"].append(coco["annotations"][0] | {"id": 2, "bbox": [5, 5, 6, 4], "segmentation": unusable})
    name = register(coco)
    with caplog.at_level(logging.WARNING):
        (record,) = get_detection_dataset_dicts(name)
    assert [annotation["bbox"] for annotation in record["annotations"]] == [[1, 2, 3, 4], [5, 5, 6, 4]]
    assert "segmentation" not in record["annotations"][1]
    (warning,) = caplog.messages
    assert (
        "a segmentation that cannot be used: their box is used without it (1), such as: annotation 2 of image a.png"
        in warning
    )


@pytest.mark.parametrize(
    ("new_id", "kinds"),
    [
        (lambda k: k - 7, {int}),
        (lambda k: 2**70 + k, {int}),
        (lambda k: float(k), {float}),
        (lambda k: f"img-{k}", {str}),
        (lambda k: str(k) if k % 2 else k, {int, str}),
    ],
)
def test_ids_of_any_kind_stay_as_they_are(register, coco, new_id, kinds):
    images = [coco["images"][0] | {"id": new_id(k), "file_name": f"{k}.png"} for k in range(6)]
    categories = [{"id": new_id(k), "name": f"class {k}"} for k in range(6)]
    annotations = [
        coco["annotations"][0] | {"id": new_id(k), "image_id": new_id(k), "category_id": new_id(5 - k)}
        for k in range(6)
    ]
    name = register({"images": images, "categories": categories[::-1], "annotations": annotations})
    records = get_detection_dataset_dicts(name)
    ids = [record["image_id"] for record in records]
    expected = sorted((each["id"] for each in images), key=lambda i: (isinstance(i, str), i))
    assert ids == expected and {type(i) for i in ids} == kinds
    index_of = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert list(index_of) == expected and list(index_of.values()) == [*range(6)]
    assert MetadataCatalog.get(name).thing_classes == [
        next(each["name"] for each in categories if each["id"] == i) for i in expected
    ]
    for record in records:
        (annotation,) = record["annotations"]
        file_number = int(Path(record["file_name"]).stem)
        assert annotation["category_id"] == index_of[new_id(5 - file_number)]


@pytest.mark.parametrize("bad", [True, None, 1.5, [1], {}, float("nan"), float("inf")])
@pytest.mark.parametrize("section", ["images", "categories", "annotations"])
def test_ids_that_are_none(register, coco, section, bad):
    coco[section][0]["id"] = bad
    with pytest.raises(ValueError, match=rf"{section}\[0\] has id .*, expected a whole number or text"):
        get_detection_dataset_dicts(register(coco))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("images", {"width": "128"}, r"images\[0\] \(a\.png\) has width '128' and height 10, expected positive whole"),
        ("images", {"height": None}, r"has width 20 and height None, expected positive whole numbers"),
        ("annotations", {"category_id": "3"}, r"has category_id '3', which is not in 'categories'"),
        ("annotations", {"bbox": "[1, 2, 3, 4]"}, r"has bbox '\[1, 2, 3, 4\]', expected four finite numbers"),
        ("annotations", {"iscrowd": "0"}, r"has iscrowd '0', expected 0 or 1"),
        ("annotations", {"ignore": "1"}, r"has ignore '1'"),
        ("annotations", {"area": "12"}, r"has area '12', expected a finite number"),
    ],
)
def test_messages_tell_text_from_numbers(register, coco, section, change, message):
    coco[section][0].update(change)
    with pytest.raises(UserError, match=message):
        get_detection_dataset_dicts(register(coco))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda c: c["annotations"][0].update(iscrowd=1), r"training leaves out all 1 boxes: 1 crowds \(iscrowd 1\)"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), "1 boxes: 1 without width or height"),
        (lambda c: c["annotations"][0].update(bbox=[30, 2, 5, 4]), "1 boxes: 1 outside of the image"),
        (lambda c: c["annotations"].clear(), "there are no annotations"),
        (lambda c: c.pop("annotations"), "there are no annotations"),
        (
            lambda c: c["annotations"][0].update(image_id="7"),
            r"there are no annotations \(1 annotations of an image that is not listed.* image '7', which is not in",
        ),
    ],
)
def test_nothing_to_train_on(register, coco, damage, why):
    damage(coco)
    name = register(coco)
    with pytest.raises(UserError, match=rf"^dataset {name} \(.*{name}\.json\): there is nothing to train on; .*{why}"):
        get_detection_dataset_dicts(name)
    assert len(get_detection_dataset_dicts(name, filter_empty=False)) == 1
    assert "no-boxes" in [entry["kind"] for entry in check_dataset(name, decode=False).findings.entries()]


def test_datasets_that_do_not_fit(register, coco):
    DatasetCatalog.register("detrx_test_none", list)
    try:
        with pytest.raises(UserError, match="dataset 'detrx_test_none' has no images"):
            get_detection_dataset_dicts("detrx_test_none")
    finally:
        DatasetCatalog.remove("detrx_test_none")
    with pytest.raises(UserError, match="no dataset is named"):
        get_detection_dataset_dicts([])
    first = register(coco)
    coco["categories"][0]["name"] = "cow"
    second = register(coco)
    with pytest.raises(UserError, match=rf"'{second}' has the classes \['cow', 'dog'\], but '{first}' has"):
        get_detection_dataset_dicts([first, second])


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
