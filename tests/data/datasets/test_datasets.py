"""Readers of public datasets, on a few images in the official layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrx.d2 import provider
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.d2.evaluation import DatasetEvaluator
from detrx.d2.structures import Boxes, BoxMode, Instances
from detrx.data import get_detection_dataset_dicts
from detrx.data.datasets import cityscapes, lvis
from detrx.data.datasets.lazy_metadata import LazyMetadata
from detrx.evaluation import COCOEvaluator, LVISEvaluator


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_file(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def without(entry: dict, key: str) -> dict:
    return {k: v for k, v in entry.items() if k != key}


def box_annotation(number: int, image: int, category: int, box: list[float]) -> dict:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    ids = {"id": number, "image_id": image, "category_id": category}
    return {**ids, "bbox": box, "area": w * h, "segmentation": [polygon]}


def score_of_the_truth(name: str, evaluator_type: type[DatasetEvaluator] = COCOEvaluator) -> dict[str, float]:
    """What the evaluator says about the ground truth of a dataset, without its crowds, as detections."""
    evaluator = evaluator_type(name, ("bbox",), distributed=False)
    evaluator.reset()
    for record in get_detection_dataset_dicts(name, filter_empty=False):
        objects = [each for each in record["annotations"] if not each.get("iscrowd")]
        boxes = [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS) for each in objects]
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(objects))
        found.pred_classes = torch.tensor([each["category_id"] for each in objects], dtype=torch.int64)
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_all_are_registered():
    names = {
        f"{dataset}_{split}" for dataset in ("lvis_v1", "objects365_v2", "cityscapes") for split in ("train", "val")
    }
    names |= {f"nuimages_{split}" for split in ("train", "val", "mini")}
    assert names <= set(DatasetCatalog.list())
    assert {MetadataCatalog.get(name).evaluator_type for name in names if "lvis" not in name} == {"coco"}
    assert MetadataCatalog.get("lvis_v1_train").evaluator_type == "lvis"


@pytest.mark.parametrize("name", ["coco_2017_train", "coco_2017_val", "lvis_v1_val", "objects365_v2_train"])
def test_the_root_is_read_when_it_is_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if provider() == "detectron2" and not name.startswith("objects365"):
        pytest.skip("registered by Detectron2")
    for folder in ("first", "second"):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / folder))
        metadata = MetadataCatalog.get(name)
        assert Path(metadata.json_file).is_relative_to(tmp_path / folder)
        assert Path(metadata.image_root).is_relative_to(tmp_path / folder)
        with pytest.raises(FileNotFoundError, match=rf"annotation file {tmp_path}/{folder}/.* does not exist"):
            DatasetCatalog.get(name)


def test_lazy_metadata():
    values = {"a": 1}
    metadata = LazyMetadata({"a": lambda: values["a"], "b": lambda: values.b}, name="lazy", c=3)
    assert (metadata.a, metadata.c, metadata.get("b", "none")) == (1, 3, "none") and not hasattr(metadata, "b")
    metadata.set(a=1)
    with pytest.raises(AssertionError):
        metadata.set(a=2)
    values["a"] = 4
    assert metadata.a == 4


class TestLVIS:
    @pytest.fixture
    def content(self) -> dict:
        image = {"coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg", "width": 640, "height": 360}
        return {
            "images": [
                {**image, "id": 391895, "neg_category_ids": [3, 1], "not_exhaustive_category_ids": [2]},
                {
                    "id": 9,
                    "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg",
                    "width": 64,
                    "height": 48,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                },
            ],
            "annotations": [box_annotation(1, 391895, 2, [10, 20, 30, 40]), box_annotation(2, 9, 3, [1, 2, 3, 4])],
            "categories": [
                {"id": 3, "name": "alcohol", "synonyms": ["alcohol", "alcoholic_beverage"], "frequency": "f"},
                {"id": 1, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "frequency": "c"},
                {"id": 2, "name": "air_conditioner", "synonyms": ["air_conditioner"], "frequency": "r"},
            ],
        }

    def load(self, root: Path, content: Any) -> list[dict]:
        file = root / lvis.FILES["train"]
        write_file(file, content)
        (root / "coco").mkdir()
        return lvis.load_lvis(file, root / "coco", lvis.lvis_classes(lambda: root))

    def test_load(self, root: Path, content: dict):
        first, second = self.load(root, content)
        assert first["file_name"] == str(root / "coco" / "val2017" / "000000000009.jpg")
        assert second["file_name"] == str(root / "coco" / "train2017" / "000000391895.jpg")
        assert (second["width"], second["height"], second["image_id"]) == (640, 360, 391895)
        assert second["neg_category_ids"] == [3, 1] and second["not_exhaustive_category_ids"] == [2]
        (annotation,) = second["annotations"]
        assert annotation["bbox"] == [10, 20, 30, 40] and annotation["bbox_mode"] == BoxMode.XYWH_ABS
        assert annotation["category_id"] == 1 and first["annotations"][0]["category_id"] == 2

    def test_classes_are_those_of_the_smaller_file_that_exists(self, root: Path, content: dict):
        classes = lvis.lvis_classes(lambda: root)
        with pytest.raises(AttributeError, match=r"lvis_v1_train\.json do not exist"):
            classes.names()
        write_file(root / lvis.FILES["train"], content)
        content["categories"][1]["synonyms"] = ["spray_can"]
        write_file(root / lvis.FILES["val"], content)
        assert classes.names() == ["spray_can", "air_conditioner", "alcohol"] and classes.ids() == {1: 0, 2: 1, 3: 2}

    @pytest.mark.skipif(provider() == "detectron2", reason="Detectron2's own registration is kept")
    def test_by_name(self, root: Path, content: dict):
        self.load(root, content)
        assert [r["image_id"] for r in get_detection_dataset_dicts("lvis_v1_train")] == [9, 391895]
        metadata = MetadataCatalog.get("lvis_v1_train")
        assert metadata.thing_classes == ["aerosol_can", "air_conditioner", "alcohol"]
        assert metadata.json_file == str(root / "lvis" / "lvis_v1_train.json")
        scores = score_of_the_truth("lvis_v1_train", LVISEvaluator)
        assert scores["AP"] == scores["APr"] == scores["APf"] == pytest.approx(100)
        (root / "coco").rmdir()
        with pytest.raises(FileNotFoundError, match=r"lvis_v1_train\.json: the folder of its images, .*/coco does not"):
            get_detection_dataset_dicts("lvis_v1_train")

    @pytest.mark.skipif(provider() != "detectron2", reason="Detectron2 is not installed")
    def test_as_detectron2_loads_it(self, root: Path, content: dict):
        from detectron2.data.datasets.lvis import load_lvis_json

        content["annotations"][0]["iscrowd"] = 0
        ours = self.load(root, content)
        theirs = load_lvis_json(str(root / lvis.FILES["train"]), f"{root}/coco/", None)
        for record in ours:
            for annotation in record["annotations"]:
                annotation.pop("iscrowd", None)
        assert ours == theirs

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda c: "{", "not valid JSON"),
            (lambda c: [c], "expected an object with images"),
            (lambda c: without(c, "categories"), "has no list 'categories'"),
            (lambda c: {**c, "images": [without(c["images"][0], "coco_url")]}, r"images\[0\] has no 'coco_url'"),
            (lambda c: {**c, "images": [without(c["images"][0], "neg_category_ids")]}, "no 'neg_category_ids'"),
            (lambda c: {**c, "annotations": [box_annotation(1, 9, 4, [1, 2, 3, 4])]}, "category_id 4, which is not in"),
            (lambda c: {**c, "annotations": [box_annotation(1, 9, 3, [1, 2, 3, 4])] * 2}, "id 1 occurs twice"),
        ],
    )
    def test_faulty_file(self, root: Path, content: dict, damage: Callable[[dict], Any], message: str):
        with pytest.raises(ValueError, match=rf"annotation file .*lvis_v1_train\.json: .*{message}"):
            self.load(root, damage(content))

    def test_missing_file(self, root: Path):
        with pytest.raises(FileNotFoundError, match=r"annotation file .*no\.json does not exist \(DETECTRON2_DATA"):
            lvis.load_lvis(root / "no.json", root, lvis.lvis_classes(lambda: root))


class TestObjects365:
    NAME = "objects365_v2_val"

    @pytest.fixture
    def content(self) -> dict:
        files = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg"]
        return {
            "images": [
                {"id": i, "file_name": f, "width": 50, "height": 40, "license": 5, "url": ""}
                for i, f in enumerate(files, start=1)
            ],
            "annotations": [{**box_annotation(1, 1, 7, [1, 2, 3, 4]), "iscrowd": 0, "isfake": 0, "isreflected": 0}],
            "categories": [{"id": 7, "name": "Sneakers"}, {"id": 1, "name": "Person"}],
        }

    @pytest.fixture
    def write(self, root: Path) -> Callable[[Any], Path]:
        (root / "objects365" / "val").mkdir(parents=True)
        file = root / "objects365" / "annotations" / "zhiyuan_objv2_val.json"
        return lambda content: write_file(file, content)

    def test_load(self, root: Path, content: dict, write: Callable):
        write(content)
        (record,) = get_detection_dataset_dicts(self.NAME, filter_empty=False)  # the other was never published
        assert record["file_name"] == str(root / "objects365" / "val" / "patch8" / "objects365_v1_00420917.jpg")
        assert record["image_id"] == 1 and record["annotations"][0]["category_id"] == 1
        assert MetadataCatalog.get("objects365_v2_train").thing_classes == ["Person", "Sneakers"]
        assert MetadataCatalog.get(self.NAME).thing_dataset_id_to_contiguous_id == {1: 0, 7: 1}
        assert score_of_the_truth(self.NAME)["AP-Sneakers"] == pytest.approx(100)

    def test_folders_as_on_the_server(self, root: Path, content: dict, write: Callable):
        write(content)
        folder = root / "objects365" / "val" / "images" / "v2" / "patch16"
        folder.mkdir(parents=True)
        (folder / "objects365_v2_00908726.jpg").touch()
        files = [r["file_name"] for r in get_detection_dataset_dicts(self.NAME, filter_empty=False)]
        images = str(root / "objects365" / "val" / "images")
        assert files == [f"{images}/v1/patch8/objects365_v1_00420917.jpg", f"{folder}/objects365_v2_00908726.jpg"]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda c: "[", "not valid JSON"),
            (lambda c: {**c, "images": [without(c["images"][0], "file_name")]}, r"images\[0\] has no 'file_name'"),
            (lambda c: {**c, "annotations": [box_annotation(1, 1, 2, [1, 2, 3, 4])]}, "category_id 2, which is not in"),
            (lambda c: {**c, "categories": c["categories"] * 2}, "category id 7 occurs twice"),
        ],
    )
    def test_faulty_file(self, content: dict, write: Callable, damage: Callable[[dict], Any], message: str):
        write(damage(content))
        with pytest.raises(ValueError, match=rf"annotation file .*zhiyuan_objv2_val\.json: .*{message}"):
            get_detection_dataset_dicts(self.NAME)

    def test_missing_folder_and_file(self, root: Path, content: dict, write: Callable):
        with pytest.raises(FileNotFoundError, match=r"annotation file .*zhiyuan_objv2_val\.json .*does not exist"):
            get_detection_dataset_dicts(self.NAME)
        write(content)
        (root / "objects365" / "val").rmdir()
        with pytest.raises(FileNotFoundError, match=r"the folder of its images, .*objects365/val does not exist"):
            get_detection_dataset_dicts(self.NAME)


class TestNuImages:
    NAME = "nuimages_mini"

    @pytest.fixture
    def tables(self) -> dict[str, list[dict]]:
        frame = {"width": 1600, "height": 900, "fileformat": "jpg"}
        lidar = {"width": None, "height": None, "fileformat": "bin"}
        return {
            "category": [
                {"token": "c1", "name": "vehicle.car", "description": ""},
                {"token": "c2", "name": "human.pedestrian.police_officer", "description": ""},
                {"token": "c3", "name": "animal", "description": ""},
            ],
            "sample_data": [
                {"token": "s1", "filename": "samples/CAM_FRONT/b.jpg", "is_key_frame": True, **frame},
                {"token": "s2", "filename": "sweeps/CAM_FRONT/b.jpg", "is_key_frame": False, **frame},
                {"token": "s3", "filename": "samples/CAM_BACK/a.jpg", "is_key_frame": True, **frame},
                {**lidar, "token": "s4", "filename": "samples/LIDAR_TOP/a.bin", "is_key_frame": True},
            ],
            "object_ann": [
                {"token": "o1", "sample_data_token": "s1", "category_token": "c1", "bbox": [10, 20, 110, 70]},
                {"token": "o2", "sample_data_token": "s1", "category_token": "c3", "bbox": [0, 0, 9, 9]},
                {"token": "o3", "sample_data_token": "s3", "category_token": "c2", "bbox": [5, 6, 8, 16]},
            ],
        }

    @pytest.fixture
    def write(self, root: Path) -> Callable[[dict], None]:
        (root / "nuimages" / "samples").mkdir(parents=True)

        def write_tables(tables: dict) -> None:
            for name, rows in tables.items():
                write_file(root / "nuimages" / "v1.0-mini" / f"{name}.json", rows)

        return write_tables

    def test_load(self, root: Path, tables: dict, write: Callable):
        write(tables)
        first, second = get_detection_dataset_dicts(self.NAME)
        assert first["file_name"] == str(root / "nuimages" / "samples" / "CAM_BACK" / "a.jpg")
        assert second["file_name"] == str(root / "nuimages" / "samples" / "CAM_FRONT" / "b.jpg")
        assert (first["width"], first["height"]) == (1600, 900)
        (officer,), (car,) = first["annotations"], second["annotations"]
        assert car["bbox"] == [10, 20, 100, 50] and officer["bbox"] == [5, 6, 3, 10]
        classes = MetadataCatalog.get(self.NAME).thing_classes
        assert len(classes) == 10
        assert [classes[each["category_id"]] for each in (car, officer)] == ["car", "pedestrian"]
        scores = score_of_the_truth(self.NAME)
        assert scores["AP"] == scores["AP-car"] == scores["AP-pedestrian"] == pytest.approx(100)

    @pytest.mark.parametrize(
        ("table", "damage", "message"),
        [
            ("category", lambda rows: "{", "not valid JSON"),
            ("category", lambda rows: {}, "expected a list, got dict"),
            ("sample_data", lambda rows: [without(rows[0], "width")], "entry 0 has no 'width'"),
            ("object_ann", lambda rows: [without(rows[0], "bbox")], "entry 0 has no 'bbox'"),
            (
                "object_ann",
                lambda rows: [{**rows[0], "category_token": "x"}],
                "'o1' has category_token 'x', which is",
            ),
            (
                "object_ann",
                lambda rows: [{**rows[0], "sample_data_token": "x"}],
                "'o1' has sample_data_token 'x', not",
            ),
            ("object_ann", lambda rows: [{**rows[0], "bbox": [9, 1, 3, 4]}], r"'o1' has bbox \[9, 1, 3, 4\], expected"),
            ("object_ann", lambda rows: [{**rows[0], "bbox": None}], r"'o1' has bbox null, expected \[xmin, ymin"),
        ],
    )
    def test_faulty_tables(self, tables: dict, write: Callable, table: str, damage: Callable, message: str):
        write({**tables, table: damage(tables[table])})
        with pytest.raises(ValueError, match=rf"annotation file .*v1\.0-mini/{table}\.json: .*{message}"):
            get_detection_dataset_dicts(self.NAME)

    def test_missing_table_and_folder(self, root: Path, tables: dict, write: Callable):
        write(without(tables, "object_ann"))
        with pytest.raises(FileNotFoundError, match=r"v1\.0-mini/object_ann\.json does not exist"):
            get_detection_dataset_dicts(self.NAME)
        write(tables)
        (root / "nuimages" / "samples").rmdir()
        with pytest.raises(FileNotFoundError, match=r"the folder of its images, .*nuimages/samples does not exist"):
            get_detection_dataset_dicts(self.NAME)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """Polygon that covers the columns left to right and the rows top to bottom, both included."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


class TestCityscapes:
    NAME = "cityscapes_val"

    @pytest.fixture
    def content(self) -> dict:
        objects = [
            ("road", rectangle(0, 40, 99, 79)),
            ("car", rectangle(10, 30, 49, 59)),
            ("bicycle", rectangle(60, 60, 69, 69)),
            ("persongroup", rectangle(70, 30, 89, 39)),
            ("license plate", rectangle(10, 50, 20, 59)),
            ("pole", rectangle(40, 0, 55, 79)),  # hides the right end of the car
            ("static", rectangle(58, 58, 69, 72)),  # hides the bicycle
            ("motorcycle", rectangle(90, 70, 120, 90)),  # leaves the image
        ]
        return {"imgWidth": 100, "imgHeight": 80, "objects": [{"label": n, "polygon": p} for n, p in objects]}

    @pytest.fixture
    def write(self, root: Path) -> Callable[[Any], None]:
        (root / "cityscapes" / "leftImg8bit" / "val").mkdir(parents=True)
        file = root / "cityscapes" / "gtFine" / "val" / "lindau" / "lindau_000001_000019_gtFine_polygons.json"
        return lambda content: write_file(file, content)

    def test_load(self, root: Path, content: dict, write: Callable):
        write(content)
        (record,) = get_detection_dataset_dicts(self.NAME)
        folder = root / "cityscapes" / "leftImg8bit" / "val" / "lindau"
        assert record["file_name"] == str(folder / "lindau_000001_000019_leftImg8bit.png")
        assert (record["width"], record["height"]) == (100, 80)
        classes = MetadataCatalog.get(self.NAME).thing_classes
        found = [(classes[each["category_id"]], each["bbox"], each["iscrowd"]) for each in record["annotations"]]
        assert found == [
            ("car", [10, 30, 30, 30], 0),
            ("person", [70, 30, 20, 10], 1),
            ("motorcycle", [90, 70, 10, 10], 0),
        ]
        scores = score_of_the_truth(self.NAME)
        assert scores["AP"] == scores["AP-car"] == pytest.approx(100)
        assert scores["AP-person"] != scores["AP-person"], "crowds are no ground truth"

    def test_area_is_what_is_visible(self, content: dict, tmp_path: Path):
        file = tmp_path / "a" / "b_gtFine_polygons.json"
        write_file(file, content)
        annotations = cityscapes.cityscapes_to_coco([file], progress=False)["annotations"]
        assert [each["area"] for each in annotations] == [900, 200, 100]

    def test_deleted_objects_are_left_out(self, content: dict, write: Callable):
        content["objects"][1]["deleted"] = 1
        write(content)
        (record,) = get_detection_dataset_dicts(self.NAME)
        assert [each["bbox"][0] for each in record["annotations"]] == [70, 90]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda c: "{", "not valid JSON"),
            (lambda c: without(c, "imgHeight"), "has no 'imgHeight', or one that is no int"),
            (lambda c: {**c, "objects": [{"label": "car"}]}, r"objects\[0\] has no 'polygon'"),
            (
                lambda c: {**c, "objects": [{"label": "tram", "polygon": []}]},
                r"objects\[0\] has the unknown label 'tr",
            ),
            (
                lambda c: {**c, "objects": [{"label": "car", "polygon": [1, 2]}]},
                r"objects\[0\] \(car\) has a poly",
            ),
        ],
    )
    def test_faulty_file(self, content: dict, write: Callable, damage: Callable[[dict], Any], message: str):
        write(damage(content))
        with pytest.raises(ValueError, match=rf"annotation file .*_gtFine_polygons\.json: {message}"):
            get_detection_dataset_dicts(self.NAME)

    def test_missing_folders(self, root: Path, content: dict, write: Callable):
        with pytest.raises(FileNotFoundError, match=r"folder of annotations .*gtFine/val does not exist"):
            get_detection_dataset_dicts(self.NAME)
        (root / "cityscapes" / "gtFine" / "val").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=r"gtFine/val/\*/\*_gtFine_polygons\.json: there is none"):
            get_detection_dataset_dicts(self.NAME)
        write(content)
        (root / "cityscapes" / "leftImg8bit" / "val").rmdir()
        with pytest.raises(FileNotFoundError, match=r"the folder of its images, .*leftImg8bit/val does not exist"):
            get_detection_dataset_dicts(self.NAME)
