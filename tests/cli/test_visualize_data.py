import itertools
import json

import pytest
import torch
from PIL import Image

from detrx import model_zoo
from detrx.analysis.data_sheet import loader_samples
from detrx.analysis.visualize import class_colour
from detrx.cli import visualize_data as tool
from detrx.d2.config import instantiate
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.engine import load_config

CONFIG = model_zoo.get_config_file("dino/dino_digits.py")


@pytest.fixture
def overrides(tmp_path):
    """A dataset of one's own: black images with a white rectangle, of the classes in turn."""
    images, annotations = [], []
    for i in range(1, 6):
        image = Image.new("RGB", (80, 60))
        image.paste((255, 255, 255), (10 * i, 10, 10 * i + 20, 40))
        image.save(tmp_path / f"picture{i}.png")
        images.append({"id": i, "file_name": f"picture{i}.png", "width": 80, "height": 60})
        box = [10 * i, 10, 20, 30]
        annotations.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": box, "area": 600, "iscrowd": 0})
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "rectangle"}]
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    yield [
        "dataset.name=detrx_test_sheet",
        *(f"dataset.{split}_json={file}" for split in ("train", "val")),
        *(f"dataset.{split}_images={tmp_path}" for split in ("train", "val")),
    ]
    for split in ("train", "val"):
        DatasetCatalog.pop(f"detrx_test_sheet_{split}", None)
        MetadataCatalog.pop(f"detrx_test_sheet_{split}", None)


def sheet(path, *arguments):
    tool.main(["--config-file", CONFIG, "--output", str(path), *arguments])
    return Image.open(path)


def has_colour(image, colour):
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return any(rgb == wanted for _, rgb in image.getcolors(1 << 24))


def test_sheet_is_the_same_for_the_same_seed(overrides, tmp_path, capsys):
    first = sheet(tmp_path / "a.png", "--num", "5", "--seed", "3", *overrides)
    assert "5 images, 5 boxes, 0 images without any" in capsys.readouterr().out
    assert sheet(tmp_path / "b.png", "--num", "5", "--seed", "3", *overrides).tobytes() == first.tobytes()
    assert sheet(tmp_path / "c.png", "--num", "5", "--seed", "4", *overrides).tobytes() != first.tobytes()
    two_rows = first.height
    assert sheet(tmp_path / "d.png", "--num", "4", "--seed", "3", *overrides).height < two_rows
    assert sheet(tmp_path / "e.png", "--num", "4", "--columns", "2", *overrides).width < first.width


def test_test_images_with_their_boxes(overrides, tmp_path):
    image = sheet(tmp_path / "out" / "test.png", "--split", "test", "--num", "9", *overrides)
    assert has_colour(image, class_colour(0)) and has_colour(image, class_colour(1))
    assert not has_colour(image, class_colour(2))
    cfg = load_config(CONFIG, overrides)
    samples = list(loader_samples(cfg, "test", 9, 0))
    assert sorted(sample["image_id"] for sample in samples) == [1, 2, 3, 4, 5]
    for sample in samples:
        x = 10.0 * sample["image_id"]
        assert sample["instances"].gt_boxes.tensor.tolist() == [[x, 10, x + 20, 40]]
        assert sample["instances"].gt_classes.tolist() == [sample["image_id"] % 2]
    assert not cfg.dataloader.test.mapper.is_train  # the config is as it was


def test_training_samples_are_those_of_a_training(overrides):
    cfg = load_config(CONFIG, [*overrides, "train.seed=7", "dataloader.train.num_workers=0"])
    shown = list(loader_samples(cfg, "train", 12, 7))
    trained = [sample for batch in itertools.islice(instantiate(cfg.dataloader.train), 3) for sample in batch]
    assert len(shown) == len(trained) == 12
    for ours, theirs in zip(shown, trained, strict=True):
        assert ours["image_id"] == theirs["image_id"] and torch.equal(ours["image"], theirs["image"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_cannot_be_read_are_left_out(overrides, tmp_path, capsys, split):
    cfg = load_config(CONFIG, overrides)
    before = [sample["image_id"] for sample in loader_samples(cfg, split, 5, 3)]
    (tmp_path / "picture2.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: image .*picture2\.png cannot be read: the file is empty$"):
        sheet(tmp_path / "a.png", "--num", "5", "--seed", "3", "--split", split, *overrides)
    assert "4 images, 4 boxes" in capsys.readouterr().out
    after = [sample["image_id"] for sample in loader_samples(cfg, split, 5, 3, skip=lambda error: None)]
    assert after == [each for each in before if each != 2] and len(after) == 4
    Image.open(tmp_path / "a.png").load()
    with pytest.raises(ValueError, match=r"picture2\.png"):
        list(loader_samples(cfg, split, 5, 3))


def test_no_image_can_be_read(overrides, tmp_path):
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: image .* \(and 3 more, named above\)"):
        sheet(tmp_path / "a.png", "--num", "4", *overrides)
    assert not (tmp_path / "a.png").exists()


def test_wrong_arguments(tmp_path):
    with pytest.raises(SystemExit, match="error: unknown config key"):
        sheet(tmp_path / "a.png", "dataloader.train.maper=3")
    with pytest.raises(SystemExit):
        sheet(tmp_path / "a.png", "--num", "0")
