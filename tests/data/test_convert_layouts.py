"""Where YOLO and Pascal VOC datasets have their files: layouts, lists and names as other tools write them."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from detrx.data.convert import DatasetConversionError, as_coco, read_voc, read_yolo

ODD = ("x", "two words", "größe", "v1.2.final", "s/x", "a=b %", "-dash", "it's", "\udcff")


def names_of(labelled, split="train"):
    """File names without suffix of the images of a split; all have one object."""
    content = as_coco(labelled.splits[split], labelled.classes, labelled.root)
    assert len(content["annotations"]) == len(content["images"])
    assert all((labelled.root / image["file_name"]).is_file() for image in content["images"])
    return [image["file_name"] for image in content["images"]]


def voc_xml(path, file_name=""):
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    entry = f"<object><name>star</name><bndbox>{corners}</bndbox></object>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{file_name}</filename>{entry}</annotation>")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 10)).save(path, "PNG")


def voc(folder, names, lists=None, suffix=".jpg"):
    for name in names:
        voc_xml(folder / "Annotations" / f"{name}.xml")
        picture(folder / "JPEGImages" / f"{name}{suffix}")
    for split, text in (lists or {}).items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_bytes(os.fsencode(text))
    return folder


class TestVOC:
    @pytest.mark.parametrize(
        "text",
        [
            "".join(f"{name}\n" for name in ODD),
            "\ufeff" + "".join(f"{name}\r\n" for name in ODD),
            "\n\n" + "".join(f"{name}  1\n" for name in ODD),  # a list of one class
            "".join(f"{name}.jpg\n" for name in ODD),
            "".join(f"{name}\n".replace("/", "\\") for name in ODD),
            "".join(f"{name}\n{name}\n" for name in ODD),  # twice
        ],
        ids=["plain", "windows", "class list", "suffixes", "backslashes", "twice"],
    )
    def test_names_in_lists(self, tmp_path, text):
        labelled = read_voc([voc(tmp_path, ODD, {"train": text})])
        assert names_of(labelled) == [f"JPEGImages/{name}.jpg" for name in ODD]

    def test_list_of_another_name(self, tmp_path):
        """As CVAT writes it; the list of a split that is there is taken alone."""
        voc(tmp_path, ["x", "y"], {"default": "x\n"})
        assert names_of(read_voc([tmp_path]), "default") == ["JPEGImages/x.jpg"]
        voc(tmp_path, [], {"train": "y\n"})
        assert list(read_voc([tmp_path]).splits) == ["train"]
        assert list(read_voc([tmp_path], ["default"]).splits) == ["default"]

    def test_lists_in_the_folder_above(self, tmp_path):
        voc(tmp_path, ["x", "y"], {"val": "y\n"})
        (tmp_path / "ImageSets" / "Main" / "val.txt").rename(tmp_path / "ImageSets" / "val.txt")
        (tmp_path / "ImageSets" / "Main").rmdir()
        assert names_of(read_voc([tmp_path]), "val") == ["JPEGImages/y.jpg"]

    @pytest.mark.parametrize("lists", [{"train": ""}, {"train": "x\n", "val": "\n"}, None])
    def test_nothing_to_convert_is_an_error(self, tmp_path, lists):
        voc(tmp_path, ["x"] if lists else [], lists)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        hint = (
            "split 'val' of .* has no images; --splits train converts" if lists and "val" in lists else "no images in"
        )
        with pytest.raises(DatasetConversionError, match=hint):
            read_voc([tmp_path])

    @pytest.mark.parametrize("directly", [True, False])
    def test_annotations_given_directly(self, tmp_path, directly, monkeypatch):
        voc(tmp_path, ["x", "s/y"], {"train": "x\n"})
        if not directly:
            monkeypatch.chdir(tmp_path / "Annotations")
        labelled = read_voc([tmp_path / "Annotations" if directly else "."])
        assert names_of(labelled) == ["JPEGImages/x.jpg"]

    def test_without_lists_subfolders_are_read(self, tmp_path):
        assert names_of(read_voc([voc(tmp_path, ["x", "s/x", "s/t/z"])])) == [
            "JPEGImages/s/t/z.jpg",
            "JPEGImages/s/x.jpg",
            "JPEGImages/x.jpg",
        ]

    def test_folders_of_splits(self, tmp_path):
        """As Roboflow writes them."""
        for split, name in (("train", "x"), ("valid", "y")):
            voc_xml(tmp_path / split / f"{name}.xml")
            picture(tmp_path / split / f"{name}.jpg")
        labelled = read_voc([tmp_path])
        assert (names_of(labelled), names_of(labelled, "val")) == (["train/x.jpg"], ["valid/y.jpg"])
        assert list(read_voc([tmp_path], ["val"]).splits) == ["val"]

    def test_other_names_of_folders(self, tmp_path):
        voc_xml(tmp_path / "annotations" / "xmls" / "x.xml")
        picture(tmp_path / "images" / "x.PNG")
        assert names_of(read_voc([tmp_path])) == ["images/x.PNG"]

    def test_upper_case(self, tmp_path):
        voc(tmp_path, ["X"], {"train": "X\n"}, suffix=".JPG")
        (tmp_path / "Annotations" / "X.xml").rename(tmp_path / "Annotations" / "X.XML")
        assert names_of(read_voc([tmp_path])) == ["JPEGImages/X.JPG"]
        shutil.rmtree(tmp_path / "ImageSets")
        assert names_of(read_voc([tmp_path])) == ["JPEGImages/X.JPG"]

    def test_one_folder_twice(self, tmp_path):
        voc(tmp_path / "VOCdevkit" / "VOC2007", ["x"], {"train": "x\n"})
        (tmp_path / "link").symlink_to(tmp_path / "VOCdevkit" / "VOC2007")
        devkit = tmp_path / "VOCdevkit"
        assert names_of(read_voc([devkit, devkit / "VOC2007", devkit / ".." / "link"])) == ["JPEGImages/x.jpg"]

    def test_relative_and_absolute_folders(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("a", "b"):
            voc(tmp_path / name, [name], {"train": name})
        assert names_of(read_voc(["a", tmp_path / "b"])) == ["a/JPEGImages/a.jpg", "b/JPEGImages/b.jpg"]

    def test_images_of_one_name(self, tmp_path):
        """The annotation says which it is of."""
        voc(tmp_path, ["x"])
        picture(tmp_path / "JPEGImages" / "x.png")
        with pytest.raises(DatasetConversionError, match=r"x\.xml: it could be of any of .*x\.jpg, .*x\.png"):
            read_voc([tmp_path])
        voc_xml(tmp_path / "Annotations" / "x.xml", "x.png")
        assert names_of(read_voc([tmp_path])) == ["JPEGImages/x.png"]

    def test_links(self, tmp_path):
        voc(tmp_path / "real", ["x"])
        voc(tmp_path / "voc", ["y"])
        for folder in ("Annotations", "JPEGImages"):
            (tmp_path / "voc" / folder / "more").symlink_to(tmp_path / "real" / folder)
            (tmp_path / "voc" / folder / "circle").symlink_to(tmp_path / "voc" / folder)
        assert names_of(read_voc([tmp_path / "voc"])) == ["JPEGImages/more/x.jpg", "JPEGImages/y.jpg"]


def yolo(folder, names, split="train", suffix=".jpg"):
    for name in names:
        picture(folder / "images" / split / f"{name}{suffix}")
        label = folder / "labels" / split / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n")
    return folder


def data_yaml(folder, text="train: images/train\n", names="[star]"):
    (folder / "data.yaml").write_text(f"{text}names: {names}\n")
    return folder


class TestYOLO:
    @pytest.mark.parametrize(
        "prefix", ["./images/train/", "images/train/", "{folder}/images/train/", "images\\train\\"]
    )
    @pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")], ids=["unix", "windows"])
    def test_names_in_lists(self, tmp_path, prefix, start, end):
        yolo(tmp_path, ODD)
        prefix = prefix.replace("{folder}", str(tmp_path))
        text = start + "".join(f"{prefix}{name}.jpg{end}" for name in ODD)
        (tmp_path / "train.txt").write_bytes(os.fsencode(text))
        labelled = read_yolo(data_yaml(tmp_path, "train: train.txt\n"))
        assert names_of(labelled) == [f"images/train/{name}.jpg" for name in ODD]

    def test_names_in_folders(self, tmp_path):
        assert names_of(read_yolo(data_yaml(yolo(tmp_path, ODD)))) == sorted(f"images/train/{name}.jpg" for name in ODD)

    def test_linked_folders(self, tmp_path):
        """Also those that lead in a circle, and folders with two names."""
        yolo(tmp_path / "real", ["x"])
        folder = yolo(tmp_path / "data", ["y"])
        for name in ("images", "labels"):
            (folder / name / "train" / "more").symlink_to(tmp_path / "real" / name / "train")
            (folder / name / "train" / "again").symlink_to(tmp_path / "real" / name / "train")
            (folder / name / "train" / "circle").symlink_to(folder / name)
        names = names_of(read_yolo(data_yaml(folder)))
        assert names == ["images/train/again/x.jpg", "images/train/y.jpg"]

    def test_linked_split(self, tmp_path):
        yolo(tmp_path / "real", ["x"])
        folder = tmp_path / "data"
        folder.mkdir()
        for name in ("images", "labels"):
            (folder / name).symlink_to(tmp_path / "real" / name)
        assert names_of(read_yolo(data_yaml(folder))) == ["images/train/x.jpg"]

    def test_links_that_lead_nowhere_are_named(self, tmp_path):
        (yolo(tmp_path, ["x"]) / "images" / "train" / "y.jpg").symlink_to("nowhere")
        with pytest.raises(DatasetConversionError, match=r"y\.jpg: does not exist"):
            read_yolo(data_yaml(tmp_path))

    @pytest.mark.parametrize("yaml", [True, False])
    def test_missing_split(self, tmp_path, yaml):
        yolo(yolo(tmp_path, ["x"]), ["y"], "val")
        if yaml:
            data_yaml(tmp_path, "train: ../images/train\nval: ../images/val\ntest: ../images/test\n")
        else:
            (tmp_path / "classes.txt").write_text("star\n")
            (tmp_path / "images" / "test").mkdir()
        with pytest.raises(FileNotFoundError, match=r"images/test.*; --splits train val converts the others$"):
            read_yolo(tmp_path)
        assert list(read_yolo(tmp_path, ["train", "val"]).splits) == ["train", "val"]

    def test_nothing_to_convert_is_an_error(self, tmp_path):
        with pytest.raises(DatasetConversionError, match="there are no images in"):
            read_yolo(data_yaml(yolo(tmp_path, ["x"]), "train:\n"))

    @pytest.mark.parametrize("inside", ["images/{}", "{}/images"])
    def test_folders_of_splits_without_yaml(self, tmp_path, inside):
        for split in ("train", "valid"):
            picture(tmp_path / inside.format(split) / f"{split}.jpg")
            label = tmp_path / inside.replace("images", "labels").format(split) / f"{split}.txt"
            label.parent.mkdir(parents=True)
            label.write_text("0 0.5 0.5 0.5 0.5\n")
        (tmp_path / "classes.txt").write_text("star\n")
        labelled = read_yolo(tmp_path)
        assert names_of(labelled) == [f"{inside.format('train')}/train.jpg"]
        assert names_of(labelled, "val") == [f"{inside.format('valid')}/valid.jpg"]

    def test_labels_beside_images_in_a_folder_called_images(self, tmp_path):
        picture(tmp_path / "images" / "x.JPG")
        (tmp_path / "images" / "x.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        assert names_of(read_yolo(data_yaml(tmp_path, "train: images\n"))) == ["images/x.JPG"]

    @pytest.mark.parametrize("form", ["[no, 1.0, 007, null, 'on']", "{0: no, 1: 1.0, 2: 007, 3: null, 4: on}"])
    def test_class_names_are_as_written(self, tmp_path, form):
        labelled = read_yolo(data_yaml(yolo(tmp_path, ["x"]), names=form))
        assert labelled.classes == ["no", "1.0", "007", "null", "on"]


def test_unreadable_subfolder_or_missing_permission(tmp_path):
    if not os.geteuid():
        pytest.skip("nothing is forbidden to root")
    (yolo(tmp_path, ["x", "s/y"]) / "images" / "train" / "s").chmod(0)
    with pytest.raises(PermissionError):
        read_yolo(data_yaml(tmp_path))
    Path(tmp_path / "images" / "train" / "s").chmod(0o700)
