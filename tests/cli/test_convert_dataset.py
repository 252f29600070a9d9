import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from detrx.cli import check_dataset as check
from detrx.cli import convert_dataset as convert
from detrx.engine import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def yolo(tmp_path):
    folder = tmp_path / "my shapes"
    for k, split in enumerate(("train", "val"), start=1):
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(folder / "images" / split / f"{k}.png")
        (folder / "labels" / split / f"{k}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [disc, star]\n")
    return folder


def test_printed_commands_work(yolo, capsys, monkeypatch):
    convert.main(["--format", "yolo", "--input", str(yolo / "data.yaml")])
    out = capsys.readouterr().out
    assert f"{yolo / 'coco' / 'train.json'}: 1 images (0 without objects), 1 objects (0 crowds)" in out
    assert f"2 classes; file names are relative to {yolo}" in out
    content = json.loads((yolo / "coco" / "val.json").read_text())
    assert content["annotations"][0]["bbox"] == [10, 5, 20, 10]

    commands = [shlex.split(line) for line in out.replace("\\\n", "").splitlines() if "tools/" in line]
    assert [command[1] for command in commands] == ["tools/check_dataset.py"] * 2 + ["tools/lazyconfig_train_net.py"]
    for command in commands[:2]:
        check.main(command[2:])
        assert capsys.readouterr().out.endswith("no errors, 0 warnings\n")
    monkeypatch.chdir(ROOT)
    cfg = load_config(commands[2][3], commands[2][4:])
    assert cfg.model.decoder.heads.num_classes == 2
    assert cfg.dataloader.test.dataset.names == "custom_val"


def test_options_of_voc(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("star\ndisc\n")
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax>"
    entry = f"<object><name>disc</name><difficult>1</difficult><bndbox>{corners}</bndbox></object>"
    (tmp_path / "a.xml").write_text(f"<annotation>{entry}</annotation>")
    options = ["--zero-based", "--classes", str(tmp_path / "classes.txt"), "--difficult", "keep"]
    output = tmp_path / "out" / "coco"
    convert.main(["--format", "voc", "--input", str(tmp_path), "--output", str(output), *options])
    (annotation,) = json.loads((output / "train.json").read_text())["annotations"]
    assert annotation["bbox"] == [1, 2, 4, 4] and annotation["category_id"] == 2 and annotation["iscrowd"] == 0
    assert "train.eval_period=0" in capsys.readouterr().out
    again = ["--format", "voc", "--input", str(tmp_path), "--output", str(output)]
    with pytest.raises(SystemExit, match=r"error: .*train\.json exists already; --overwrite"):
        convert.main(again)
    convert.main([*again, "--overwrite"])
    (annotation,) = json.loads((output / "train.json").read_text())["annotations"]
    assert annotation["bbox"] == [0, 1, 5, 5] and annotation["category_id"] == 1 and annotation["iscrowd"] == 1


def test_a_single_split_of_any_name_is_trained_on(tmp_path, capsys):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "a b.png")
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax>"
    entry = f"<object><name>disc</name><bndbox>{corners}</bndbox></object>"
    (tmp_path / "Annotations" / "a b.xml").write_text(f"<annotation>{entry}</annotation>")
    (tmp_path / "ImageSets" / "Main" / "default.txt").write_text("a b\n")
    (tmp_path / "classes.txt").write_text("\ufeffdisc\r\n")
    convert.main(["--format", "voc", "--input", str(tmp_path), "--classes", str(tmp_path / "classes.txt")])
    out = capsys.readouterr().out
    assert f"dataset.train_json={tmp_path / 'coco' / 'default.json'}" in out and "train.eval_period=0" in out
    content = json.loads((tmp_path / "coco" / "default.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a b.png"]
    assert content["categories"] == [{"id": 1, "name": "disc"}]


def test_nothing_is_written_if_there_is_nothing(tmp_path):
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(SystemExit, match="error: there are no images in"):
        convert.main(["--format", "voc", "--input", str(tmp_path), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_if_a_line_is_malformed(yolo):
    labels = yolo / "labels" / "val" / "2.txt"
    labels.write_text("1 0.5 0.5\n")
    with pytest.raises(SystemExit) as exit:
        convert.main(["--format", "yolo", "--input", str(yolo)])
    assert exit.value.code.startswith(f"error: {labels}:1: expected a class with x y w h")
    assert exit.value.code.endswith("; nothing is written") and "\n" not in exit.value.code
    assert not (yolo / "coco").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "coco", "--input", "a"],
        ["--format", "yolo", "--input", "a", "b"],
        ["--format", "yolo", "--input", "a", "--zero-based"],
        ["--format", "voc", "--input", "a", "--workers", "0"],
    ],
)
def test_arguments_that_do_not_fit(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        convert.main(arguments)
    assert exit.value.code == 2
