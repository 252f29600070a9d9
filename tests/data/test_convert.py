import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrx.data import load_coco
from detrx.data.check.dataset import check_coco_file
from detrx.data.convert import VOC_CLASSES, DatasetConversionError, as_coco, read_voc, read_yolo, write_coco_files

NAMES = ["disc", "square", "star"]


@pytest.fixture
def coco():
    """Random boxes in images of three sizes, the last without boxes."""
    generator = np.random.default_rng(0)
    sizes = [(640, 480), (333, 500), (50, 40), (60, 60)]
    content = {"images": [], "annotations": [], "categories": [{"id": k + 1, "name": n} for k, n in enumerate(NAMES)]}
    for image_id, (width, height) in enumerate(sizes, start=1):
        content["images"].append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        for _ in range(5 if image_id < 4 else 0):
            x, y = generator.uniform(0, 0.7, 2) * (width, height)
            w, h = generator.uniform(0.05, 0.3, 2) * (width, height)
            box = [float(x), float(y), float(w), float(h)]
            label, number = int(generator.integers(1, 4)), len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "image_id": image_id, "category_id": label, "bbox": box})
    return content


def write_yolo(folder, coco, split="train", polygons=False):
    images, labels = folder / "images" / split, folder / "labels" / split
    for place in (images, labels):
        place.mkdir(parents=True, exist_ok=True)
    for image in coco["images"]:
        width, height = image["width"], image["height"]
        Image.new("L", (width, height)).save(images / image["file_name"])
        lines = []
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = (v / s for v, s in zip(annotation["bbox"], (width, height) * 2, strict=True))
                numbers = [x, y, x + w, y, x + w, y + h, x, y + h] if polygons else [x + w / 2, y + h / 2, w, h]
                lines.append(" ".join([str(annotation["category_id"] - 1), *(f"{v:.8f}" for v in numbers)]))
        if lines:
            (labels / f"{image['id']}.txt").write_text("\n".join(lines) + "\n\n")


def write_yaml(folder, text="path: .\ntrain: images/train\nnames: [disc, square, star]\n"):
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def assert_same(labelled, coco, split="train", tolerance=2e-3):
    content = as_coco(labelled.splits[split], labelled.classes, labelled.root)
    assert [c["name"] for c in content["categories"]] == NAMES
    assert [(i["width"], i["height"]) for i in content["images"]] == [(i["width"], i["height"]) for i in coco["images"]]
    assert all((labelled.root / image["file_name"]).is_file() for image in content["images"])
    assert len(content["annotations"]) == len(coco["annotations"]) > 0
    for found, true in zip(content["annotations"], coco["annotations"], strict=True):
        assert (found["id"], found["image_id"]) == (true["id"], true["image_id"])
        assert found["category_id"] == true["category_id"] and found["iscrowd"] == 0
        np.testing.assert_allclose(found["bbox"], true["bbox"], atol=tolerance)
        assert found["area"] == pytest.approx(found["bbox"][2] * found["bbox"][3], abs=1e-3)


@pytest.mark.parametrize("polygons", [False, True])
def test_yolo_round_trip(tmp_path, coco, polygons):
    write_yolo(tmp_path, coco, polygons=polygons)
    write_yaml(tmp_path)
    labelled = read_yolo(tmp_path, workers=2)
    assert_same(labelled, coco)
    path = write_coco_files(labelled, tmp_path / "coco")["train"]
    assert check_coco_file(str(path), str(labelled.root)).findings.entries() == []
    assert len(load_coco(path, labelled.root)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nnames: {0: disc, 1: square, 2: star}\nnc: 3\n",  # without path
        "train: ../images/train\nnames: [disc, square, star]\n",  # Roboflow's
        "path: {folder}\ntrain: [images/train]\nval: images/nowhere\nnames: [disc, square, star]\n",
        "train: train.txt\nnames: [disc, square, star]\n",
    ],
)
def test_ways_to_name_yolo_images(tmp_path, coco, text):
    write_yolo(tmp_path, coco)
    (tmp_path / "train.txt").write_text("".join(f"./images/train/{k}.png\n" for k in range(1, 5)))
    assert_same(read_yolo(write_yaml(tmp_path, text.replace("{folder}", str(tmp_path))), ["train"]), coco)


@pytest.mark.parametrize("place", [".", "labels"])
def test_yolo_folders_with_classes_txt(tmp_path, coco, place):
    write_yolo(tmp_path, coco)
    write_yolo(tmp_path, coco, "val")
    (tmp_path / place / "classes.txt").write_text("disc\nsquare\nstar\n")
    labelled = read_yolo(tmp_path)
    assert list(labelled.splits) == ["train", "val"]
    assert_same(labelled, coco, "val")
    assert list(read_yolo(tmp_path, ["val"]).splits) == ["val"]


def test_yolo_labels_beside_images(tmp_path, coco):
    write_yolo(tmp_path, coco)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for file in [*(tmp_path / "images").rglob("*.png"), *(tmp_path / "labels").rglob("*.txt")]:
        file.rename(mixed / file.name)
    (mixed / "classes.txt").write_text("disc\nsquare\nstar\n")
    assert_same(read_yolo(mixed), coco)


def test_yolo_keypoints_are_passed_over(tmp_path, coco):
    write_yolo(tmp_path, coco)
    for file in (tmp_path / "labels").rglob("*.txt"):
        file.write_text("".join(f"{line} 0.5 0.5 2 0.1 0.1 1\n" for line in file.read_text().split("\n") if line))
    yaml = write_yaml(tmp_path, "train: images/train\nkpt_shape: [2, 3]\nnames: [disc, square, star]\n")
    assert_same(read_yolo(yaml), coco)


def test_yolo_labels_are_relative_to_the_upright_image(tmp_path, coco):
    write_yolo(tmp_path, coco)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (480, 640)).save(tmp_path / "images" / "train" / "1.png", exif=exif)
    write_yaml(tmp_path)
    assert_same(read_yolo(tmp_path), coco)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.1", "got 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "got 8 numbers"),
        ("3 0.5 0.5 0.1 0.1", "class 3 is not one of 0 to 2"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not one of 0 to 2"),
        ("disc 0.5 0.5 0.1 0.1", "expected numbers, got 'disc 0.5"),
        ("0 0.5 0.5 nan 0.1", "coordinate nan is not relative"),
        ("0 50 50 10 10", "coordinate 50 is not relative"),
        ("0 0.5 0.5 -0.005 0.1", "width -0.005"),
    ],
)
def test_malformed_yolo_lines(tmp_path, coco, line, reason):
    write_yolo(tmp_path, coco)
    file = tmp_path / "labels" / "train" / "2.txt"
    file.write_text(file.read_text().strip() + f"\n\n{line}\n")
    write_yaml(tmp_path)
    with pytest.raises(DatasetConversionError, match="nothing is written") as error:
        read_yolo(tmp_path)
    first = str(error.value)
    assert first.startswith(f"{file}:7: ") and reason in first


def test_all_malformed_files_are_listed(tmp_path, coco):
    write_yolo(tmp_path, coco)
    (tmp_path / "labels" / "train" / "1.txt").write_text("x\n" * 30)
    (tmp_path / "labels" / "train" / "2.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "images" / "train" / "3.png").write_bytes(b"")
    write_yaml(tmp_path)
    with pytest.raises(DatasetConversionError) as error:
        read_yolo(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("32 problems") and lines[-1] == "and 12 more" and len(lines) == 22
    assert "3.png: cannot be read: the file is empty" in lines[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a\ntrain: images", r"data\.yaml:\d: not valid YAML"),
        ("3", "expected keys such as train"),
        ("train: images/train", "names is None"),
        ("train: images/train\nnames: {0: a, 2: b}", r"names has the numbers \[0, 2\], expected 0 to 1"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2, but there are 1 names"),
        ("path: elsewhere\ntrain: images/train\nnames: [a]", "elsewhere, which does not exist"),
        ("train: images/trian\nnames: [a]", r"train is 'images/trian', but .* does not exist"),
        ("train: data.yaml\nnames: [a]", r"data\.yaml:1: image train: data\.yaml does not exist"),
        ("names: [a]\nval: images/train", "has no split 'train'; it has none"),
    ],
)
def test_malformed_data_yaml(tmp_path, coco, text, message):
    write_yolo(tmp_path, coco)
    write_yaml(tmp_path, text)
    with pytest.raises((DatasetConversionError, FileNotFoundError), match=message):
        read_yolo(tmp_path, ["train"])


def test_yolo_without_any_labels(tmp_path, coco):
    write_yolo(tmp_path, coco | {"annotations": []})
    write_yaml(tmp_path)
    with pytest.raises(
        DatasetConversionError, match=r"none of 4 images has a label file, such as .*labels.train.1\.txt"
    ):
        read_yolo(tmp_path)


def voc_object(name, box, difficult=0):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>\n<bndbox>{corners}</bndbox>{part}</object>\n"


def write_voc(folder, objects, sets=("trainval",), stem="000005", size=(60, 40)):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(folder / "JPEGImages" / f"{stem}.jpg")
    head = f"<annotation>\n<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    (folder / "Annotations" / f"{stem}.xml").write_text(head + "".join(objects) + "</annotation>")
    for split in sets:
        with open(folder / "ImageSets" / "Main" / f"{split}.txt", "a", encoding="utf-8") as file:
            file.write(f"{stem}\n")
    return folder


def voc_boxes(labelled, split="trainval"):
    content = as_coco(labelled.splits[split], labelled.classes, labelled.root)
    return [(a["bbox"], a["iscrowd"]) for a in content["annotations"]]


def test_voc_counts_pixels_from_one(tmp_path):
    objects = [voc_object("dog", (1, 1, 60, 40)), voc_object("cat", (11, 6, 11, 8))]
    labelled = read_voc([write_voc(tmp_path, objects)])
    assert voc_boxes(labelled) == [([0, 0, 60, 40], 0), ([10, 5, 1, 3], 0)]
    assert labelled.classes == list(VOC_CLASSES)
    content = as_coco(labelled.splits["trainval"], labelled.classes, labelled.root)
    assert [a["category_id"] for a in content["annotations"]] == [12, 8]
    assert content["images"] == [{"id": 1, "file_name": "JPEGImages/000005.jpg", "width": 60, "height": 40}]
    assert voc_boxes(read_voc([tmp_path], zero_based=True))[1] == ([11, 6, 0, 2], 0)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("crowd", [([0, 0, 9, 9], 0), ([10, 10, 10, 10], 1)]),
        ("keep", [([0, 0, 9, 9], 0), ([10, 10, 10, 10], 0)]),
        ("drop", [([0, 0, 9, 9], 0)]),
    ],
)
def test_voc_difficult_objects(tmp_path, how, expected):
    write_voc(tmp_path, [voc_object("dog", (1, 1, 9, 9)), voc_object("dog", (11, 11, 20, 20), difficult=1)])
    assert voc_boxes(read_voc([tmp_path], difficult=how)) == expected


def test_voc_years_together(tmp_path):
    write_voc(tmp_path / "VOC2007", [voc_object("dog", (1, 1, 9, 9))], ("trainval", "test"))
    write_voc(tmp_path / "VOC2012", [voc_object("cat", (1, 1, 8, 8))], stem="2008_000001", size=(0, 0))
    for sources in ([tmp_path], [tmp_path / "VOC2007", tmp_path / "VOC2012"]):
        labelled = read_voc(sources)
        assert labelled.root == tmp_path and list(labelled.splits) == ["trainval", "test"]
        images = as_coco(labelled.splits["trainval"], labelled.classes, labelled.root)["images"]
        names = ["VOC2007/JPEGImages/000005.jpg", "VOC2012/JPEGImages/2008_000001.jpg"]
        assert [(i["file_name"], i["width"]) for i in images] == [(name, 60) for name in names]
        assert len(voc_boxes(labelled, "test")) == 1
    assert list(read_voc([tmp_path], ["test"]).splits) == ["test"]
    with pytest.raises(FileNotFoundError, match=r"no ImageSets/Main/val\.txt"):
        read_voc([tmp_path], ["val"])


def test_voc_files_in_one_folder(tmp_path):
    """As annotation programs write them: no lists, classes of one's own."""
    write_voc(tmp_path / "voc", [voc_object("star", (1, 1, 9, 9)), voc_object("disc", (1, 1, 9, 9))])
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in tmp_path.glob("voc/*/000005.*"):
        file.rename(flat / file.name)
    labelled = read_voc([flat])
    assert labelled.classes == ["disc", "star"] and list(labelled.splits) == ["train"]
    assert len(voc_boxes(labelled, "train")) == 2
    assert read_voc([flat], classes=["star", "square", "disc"]).classes == ["star", "square", "disc"]
    with pytest.raises(DatasetConversionError, match="objects of star, which are not among"):
        read_voc([flat], classes=["disc"])


def test_voc_frame_of_a_turned_image(tmp_path):
    """Annotated as stored, without regard to EXIF: this is the size that is written, and then read again."""
    write_voc(tmp_path, [voc_object("dog", (1, 1, 40, 60))], size=(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "JPEGImages" / "000005.jpg", exif=exif)
    path = write_coco_files(read_voc([tmp_path]), tmp_path / "coco")["trainval"]
    assert json.loads(path.read_text())["images"][0]["width"] == 40
    checked = check_coco_file(str(path), str(tmp_path))
    assert [entry["kind"] for entry in checked.findings.entries()] == ["image-not-turned"]


GOOD = voc_object("dog", (1, 1, 9, 9))


@pytest.mark.parametrize(
    ("objects", "place", "reason"),
    [
        ([GOOD, voc_object("dog", (1, 1, "x", 9))], ":6: ", "xmax is 'x', expected a number"),
        ([GOOD, voc_object("dog", (20, 1, 9, 9))], ":6: ", "object 'dog' ends before it begins"),
        ([GOOD, voc_object(" ", (1, 1, 9, 9))], ":5: ", "object without a name"),
        ([GOOD, GOOD.replace("bndbox", "box")], ":5: ", "object 'dog' without a bndbox"),
        ([GOOD, GOOD.replace("ymin", "y")], ":6: ", "bndbox without ymin"),
        ([voc_object("dog", (1, 1, 9, 9), "maybe")], ":3: ", "difficult is 'maybe'"),
        (["<object>"], ":3: ", "not valid XML (mismatched tag)"),
    ],
)
def test_malformed_voc_files(tmp_path, objects, place, reason):
    write_voc(tmp_path, objects)
    with pytest.raises(DatasetConversionError) as error:
        read_voc([tmp_path])
    line = str(error.value)
    assert line.startswith(str(tmp_path / "Annotations" / "000005.xml") + place) and reason in line


def test_voc_files_that_do_not_fit(tmp_path):
    write_voc(tmp_path, [GOOD], stem="a", size=(61, 40))
    write_voc(tmp_path, [GOOD], stem="b")
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    write_voc(tmp_path, [GOOD], stem="c")
    (tmp_path / "Annotations" / "c.xml").unlink()
    with pytest.raises(DatasetConversionError) as error:
        read_voc([tmp_path])
    text = str(error.value)
    assert f"{tmp_path}/ImageSets/Main/trainval.txt:3: there is no" in text
    assert "b.xml: there is no image b.jpg" in text
    assert "a.xml: size is 61 x 40, but" in text and "a.jpg is 60 x 40" in text
    with pytest.raises(FileNotFoundError, match="has no Annotations"):
        read_voc([Path(tmp_path / "JPEGImages")])


def test_files_are_not_overwritten_unasked(tmp_path):
    labelled = read_voc([write_voc(tmp_path, [GOOD])])
    path = write_coco_files(labelled, tmp_path)["trainval"]
    path.write_text("precious")
    with pytest.raises(DatasetConversionError, match=r"trainval\.json exists already"):
        write_coco_files(labelled, tmp_path)
    assert path.read_text() == "precious"
    write_coco_files(labelled, tmp_path, overwrite=True)
    assert json.loads(path.read_text())["images"]
