import copy
import json
import random

import pytest
from omegaconf import OmegaConf
from PIL import Image

from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.d2.structures import BoxMode
from detrx.data import get_detection_dataset_dicts
from detrx.data.check.dataset import check_coco_file, check_config, check_dataset
from detrx.data.check.report import as_text


@pytest.fixture
def coco():
    """Three images; category ids with a gap, of which one has no boxes."""
    boxes = [[1, 2, 3, 4], [5, 5, 10, 5], [0, 0, 40, 30], [8, 8, 20, 20]]
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 30} for k in (3, 5, 9)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": 3 if k < 3 else 5,
                "category_id": 7 if k else 2,
                "bbox": box,
                "area": 1,
                "iscrowd": 0,
            }
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 4, "name": "cow"}],
    }


@pytest.fixture
def folder(tmp_path):
    for k in (3, 5, 9):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{k}.png")
    return tmp_path


def check(content, folder, **how):
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return check_coco_file(str(path), str(folder), **how)


def kinds(checked):
    return {entry["kind"]: entry["count"] for entry in checked.findings.entries()}


def test_nothing_wrong(coco, folder):
    checked = check(coco, folder, workers=2)
    assert kinds(checked) == {}
    numbers = checked.statistics
    assert (numbers["images"], numbers["images_without_boxes"], numbers["boxes"]) == (3, 1, 4)
    assert numbers["boxes_per_image"] == {"min": 0, "median": 1, "max": 3, "mean": pytest.approx(4 / 3)}
    assert numbers["boxes_by_size"] == {"small": 3, "medium": 1, "large": 0}
    assert numbers["box_side"]["max"] == pytest.approx(1200**0.5)
    assert numbers["classes"] == [
        {"name": "cat", "boxes": 1, "images": 1},
        {"name": "cow", "boxes": 0, "images": 0},
        {"name": "dog", "boxes": 3, "images": 2},
    ]
    assert numbers["classes_without_boxes"] == ["cow"]


def change(section, position=0, **changes):
    return lambda c: c[section][position].update(changes)


def repeat(section, **changes):
    return lambda c: c[section].append(c[section][0] | changes)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (repeat("images", file_name="5.png"), {"image-id-twice": 1}),
        (repeat("categories", name="horse"), {"category-id-twice": 1}),
        (repeat("annotations"), {"annotation-id-twice": 1}),
        (repeat("images", id=77), {"file-name-twice": 1}),
        (repeat("categories", id=77), {"category-name-twice": 1}),
        (repeat("annotations", id=77), {"same-box": 1}),
        (change("annotations", category_id=1), {"unknown-category": 1}),
        (change("annotations", image_id=1), {"stray-annotation": 1}),
        (change("annotations", id=0), {"annotation-id-0": 1}),
        (change("annotations", id="x"), {}),
        (change("annotations", id=[1]), {"entry": 1}),
        (change("annotations", id=1.5), {"entry": 1}),
        (change("annotations", area="7"), {"entry": 1}),
        (change("annotations", area=None), {"no-area-key": 1}),
        (change("annotations", iscrowd=None), {"no-area-key": 1}),
        (change("annotations", iscrowd="no"), {"entry": 1}),
        (change("annotations", ignore=1), {"ignore": 1}),
        (lambda c: c["annotations"][0].pop("area"), {"no-area-key": 1}),
        (change("annotations", bbox=[1, 2, 3]), {"bad-box": 1}),
        (change("annotations", bbox=[1, 2, 3, "4"]), {"bad-box": 1}),
        (change("annotations", bbox=[1, 2, 3, 10**400]), {"bad-box": 1}),
        (change("annotations", bbox=[1, 2, 0, 4]), {"no-extent": 1}),
        (change("annotations", bbox=[1, 2, -3, 4]), {"no-extent": 1}),
        (change("annotations", bbox=[1, 2, 1e-6, 4]), {"no-extent": 1}),
        (change("annotations", bbox=[39.999999, 2, 9, 4]), {"outside": 1}),
        (change("annotations", bbox=[40, 2, 3, 4]), {"outside": 1}),
        (change("annotations", bbox=[38, 2, 3.5, 4]), {"partly-outside": 1}),
        (change("annotations", bbox=[38, 2, 2.5, 4]), {}),  # within the tolerance
        (change("annotations", bbox=[40, 2, 3, 4], iscrowd=1), {}),
        (change("annotations", bbox=[1, 2, 0.5, 4]), {"tiny": 1}),
        (change("annotations", segmentation=[[1, 2, 3, 4]]), {"no-polygon": 1}),
        (change("annotations", segmentation={"counts": [1], "size": 3}), {"no-polygon": 1}),
        (change("images", width=0), {"entry": 1, "stray-annotation": 3}),
        (change("images", width=30, height=40), {"image-size": 1, "partly-outside": 1}),
        (change("images", file_name="nowhere.png"), {"image-missing": 1}),
        (change("images", 2, file_name="\ud800.png"), {"image-unreadable": 1}),
        (change("images", 2, file_name="annotations.json"), {"image-unreadable": 1}),
        (lambda c: c.pop("annotations"), {"no-boxes": 1}),
        (lambda c: c.update(images={}), {"file": 1, "stray-annotation": 4}),
    ],
)
def test_each_kind(coco, folder, damage, expected):
    damage(coco)
    checked = check(coco, folder)
    assert kinds(checked) == expected
    assert as_text(checked).count("\nerror ") == sum(e["severity"] == "error" for e in checked.findings.entries())


def test_all_problems_at_once_with_examples(coco, folder):
    coco["images"][2]["file_name"] = "broken.png"
    (folder / "broken.png").write_bytes(b"")
    coco["annotations"] += [coco["annotations"][0] | {"id": 10 + k, "bbox": [k, 1, 0, 1]} for k in range(5)]
    coco["annotations"].append(coco["annotations"][0] | {"id": 99, "category_id": 1})
    checked = check(coco, folder, max_examples=2)
    assert kinds(checked) == {"unknown-category": 1, "image-unreadable": 1, "no-extent": 5}
    examples = {entry["kind"]: entry["examples"] for entry in checked.findings.entries()}
    assert examples["image-unreadable"] == [f"{folder / 'broken.png'}: the file is empty"]
    assert examples["no-extent"] == [
        f"annotation {10 + k} of image {folder / '3.png'} (40 x 30), bbox [{k}, 1, 0, 1]" for k in range(2)
    ]
    text = as_text(checked)
    assert "annotation 99 of image 3.png has category_id 1" in text and "and 3 more" in text
    assert (checked.findings.count("error"), checked.findings.count("warning")) == (2, 5)
    assert json.loads(json.dumps(checked.as_dict()))["errors"] == 2


def test_boxes_in_other_formats(coco, folder):
    corners = copy.deepcopy(coco)
    for annotation in corners["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    assert kinds(check(corners, folder)) == {"partly-outside": 1, "corners": 1}
    for annotation in coco["annotations"]:
        annotation["bbox"] = [value / 40 for value in annotation["bbox"]]
    found = kinds(check(coco, folder))
    assert found["normalised"] == 1 and set(found) == {"normalised", "tiny"}


def test_images_are_not_decoded_on_request(coco, folder):
    (folder / "3.png").write_bytes(b"broken")
    (folder / "5.png").unlink()
    assert kinds(check(coco, folder)) == {"image-missing": 1, "image-unreadable": 1}
    assert kinds(check(coco, folder, decode=False)) == {"image-missing": 1}


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_notes_about_images(coco, folder, mode):
    Image.new(mode, (40, 30), 7).save(folder / "5.png")
    assert kinds(check(coco, folder)) == {{"RGBA": "image-transparent", "I;16": "image-dim"}[mode]: 1}


@pytest.mark.parametrize(("size", "expected"), [((820, 20), {"image-shape": 1}), ((20, 800), {})])
@pytest.mark.parametrize("decode", [True, False])
def test_extreme_shapes(coco, folder, size, expected, decode):
    Image.new("L", size).save(folder / "9.png")
    coco["images"][2].update(width=size[0], height=size[1])
    checked = check(coco, folder, decode=decode)
    assert kinds(checked) == expected
    if expected:
        assert checked.findings.entries()[0]["examples"] == [f"{folder / '9.png'}: 820 x 20"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00", "[" * 100_000, '{"images": 1}'])
def test_files_that_are_not_coco(folder, text):
    found = kinds(check(text, folder))
    assert set(found) == {"file"}
    assert "error " in as_text(check(text, folder))


def test_missing_file(tmp_path):
    assert kinds(check_coco_file(str(tmp_path / "nowhere.json"), str(tmp_path))) == {"file": 1}
    assert kinds(check_coco_file(str(tmp_path), str(tmp_path))) == {"file": 1}  # a folder


ODD = [
    None,
    True,
    -1,
    0,
    2.5,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "\ud800",
    "a\nb\0",
    [],
    [[]],
    {},
    {"a": 1},
]


def nodes(value, path=()):
    """Paths to everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from nodes(inner, (*path, key))


def damaged(content, generator):
    """A copy in which some values are removed, or replaced by odd ones."""
    content = copy.deepcopy(content)
    for path in generator.sample(list(nodes(content)), generator.randint(1, 3)):
        try:
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            if generator.random() < 0.2:
                del parent[path[-1]]
            else:
                parent[path[-1]] = generator.choice(ODD)
        except (KeyError, IndexError, TypeError):  # an earlier change removed it
            continue
    return content


def test_malformed_content_is_found_and_never_raised(coco, folder):
    generator = random.Random(0)
    coco["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    coco["annotations"][1]["segmentation"] = {"counts": [3, 4, 5], "size": [3, 4]}
    found = set()
    for _ in range(80):
        content = damaged(coco, generator)
        checked = check(content, folder, decode=False)
        as_text(checked).encode()
        json.dumps(checked.as_dict()).encode()
        found |= set(kinds(checked))
    assert len(found) >= 9


@pytest.fixture
def register(folder):
    names = []

    def add(name, content=None, records=None, **metadata):
        names.append(name)
        if content is not None:
            path = folder / f"{name}.json"
            path.write_text(json.dumps(content))
            register_coco_instances(name, metadata, str(path), str(folder))
        else:
            DatasetCatalog.register(name, lambda: records)
            MetadataCatalog.get(name).set(**metadata)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registered_coco_file(register, coco):
    """Also what its reader stops at, and all of it; annotation ids are known."""
    coco["annotations"][1]["bbox"] = [1, 1, 0, 0]
    checked = check_dataset(register("detrx_check_a", coco))
    assert kinds(checked) == {"no-extent": 1}
    assert checked.findings.entries()[0]["examples"][0].startswith("annotation 2 of image ")
    coco["annotations"] += [coco["annotations"][0], coco["annotations"][3] | {"id": 50, "category_id": 1}]
    checked = check_dataset(register("detrx_check_b", coco))
    assert kinds(checked) == {"annotation-id-twice": 1, "unknown-category": 1, "no-extent": 1}
    name = register("detrx_check_c", coco, thing_classes=["cat"])
    assert "other-classes" in kinds(check_dataset(name))
    with pytest.raises(ValueError, match=r"detrx_check_c"):
        get_detection_dataset_dicts(name)


def test_registered_function(register, folder):
    """Of any kind: only its dataset dicts are known."""
    good = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    records = [
        {"file_name": folder / "3.png", "annotations": [good, good | {"category_id": 5}, good | {"bbox": None}, {}]},
        {"file_name": str(folder / "5.png"), "width": 30, "height": 30, "annotations": [good | {"bbox": [1, 1, 1, 9]}]},
        {"image_id": 3},
        None,
    ]
    checked = check_dataset(register("detrx_check_d", records=records, thing_classes=["cat"]))
    expected = {"entry": 3, "unknown-category": 1, "bad-box": 1, "image-size": 1, "no-extent": 1}
    assert kinds(checked) == expected
    assert checked.statistics["boxes"] == 2
    assert kinds(check_dataset(register("detrx_check_e", records=None))) == {"file": 1}
    with pytest.raises(ValueError, match=r"'detrx_check_x' is not registered; did you mean"):
        check_dataset("detrx_check_x")


def test_malformed_dataset_dicts_are_found_and_never_raised(register, folder):
    generator = random.Random(0)
    boxes = [
        {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0},
        {"bbox": [1.5, 1, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
    ]
    records = [{"file_name": str(folder / f"{k}.png"), "width": 40, "height": 30, "annotations": boxes} for k in (3, 5)]
    name = register("detrx_check_f", records=records)
    found = set()
    for k in range(80):
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: damaged(records, generator))
        MetadataCatalog.get(name).set(**({} if k < 40 else {"thing_classes": ["cat", "dog"]}))
        checked = check_dataset(name, decode=False)
        as_text(checked).encode()
        json.dumps(checked.as_dict()).encode()
        found |= set(kinds(checked))
    assert {"entry", "bad-box", "image-missing"} <= found


def config(train, test, num_classes=3):
    return OmegaConf.create(
        {
            "dataloader": {"train": {"dataset": {"names": train}}, "test": {"dataset": {"names": test}}},
            "model": {"decoder": {"heads": {"num_classes": num_classes}}},
        }
    )


def test_more_boxes_than_queries(register, coco):
    """Image 3 has three boxes and a crowd, image 5 has one."""
    crowd = coco["annotations"][0] | {"id": 50, "bbox": [0, 0, 5, 5], "iscrowd": 1}
    coco["annotations"].append(crowd)
    cfg = config(register("detrx_check_queries", coco), "detrx_check_queries")
    more = {"more-than-queries": 1}
    for source, expected in (
        ({"num_queries": 3}, {}),
        ({"num_queries": 2}, more),
        ({"num_queries": 2, "num_patterns": 0}, more),
        ({"num_queries": 2, "num_patterns": 2}, {}),
        ({}, {}),
    ):
        cfg.model.query_source = source
        (checked,) = check_config(cfg)
        assert kinds(checked) == expected
        assert checked.statistics["boxes_per_image"]["max"] == 3
        if expected:
            (example,) = checked.findings.entries()[0]["examples"]
            assert example.endswith("3.png: 3 boxes, but model.query_source has 2 queries")


def test_datasets_of_a_config(register, coco):
    train = copy.deepcopy(coco)
    train["images"] = train["images"][:2]
    test = copy.deepcopy(coco)
    test["images"], test["annotations"] = test["images"][2:], []
    a, b = register("detrx_check_train", train), register("detrx_check_test", test)
    assert [kinds(checked) for checked in check_config(config(a, [b]))] == [{}, {}]
    assert [kinds(checked) for checked in check_config(config(b, b))] == [{"no-boxes": 1}]
    first, second = check_config(config(a, b, num_classes=80))
    assert kinds(first) == kinds(second) == {"class-count": 1}
    test["categories"].reverse()
    test["categories"][0]["name"] = "sheep"
    test["images"].append(train["images"][0])
    other = register("detrx_check_other", test)
    assert kinds(check_config(config(a, other))[1]) == {"train-test-classes": 1, "in-train-and-test": 1}
    with pytest.raises(ValueError, match=r"no dataset names"):
        check_config(OmegaConf.create({"dataloader": {}}))
