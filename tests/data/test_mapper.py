import logging

import pytest
import torch
from PIL import Image

from detrx.d2.structures import BoxMode
from detrx.data import DetectionMapper, build_test_loader, digits_augmentation, resize_augmentation
from detrx.data.mapper import _warned_flags


def annotation(box, category=1, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": 0} | more


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (60, 40), (255, 128, 0)).save(path)
    return {
        "file_name": str(path),
        "width": 60,
        "height": 40,
        "image_id": 5,
        "annotations": [annotation([10, 5, 20, 8])],
    }


def test_training_output(record):
    before = repr(record)
    result = DetectionMapper(is_train=True)(record)
    assert result["image"].dtype == torch.uint8
    assert type(result["image"]) is torch.Tensor
    assert result["image"].shape == (3, 40, 60)
    assert result["image"][:, 0, 0].tolist() == [255, 128, 0]  # RGB
    assert (result["height"], result["width"], result["image_id"]) == (40, 60, 5)
    assert result["file_name"] == record["file_name"]
    assert result["instances"].image_size == (40, 60)
    assert result["instances"].gt_boxes.tensor.tolist() == [[10, 5, 30, 13]]
    assert type(result["instances"].gt_boxes.tensor) is torch.Tensor
    assert result["instances"].gt_classes.tolist() == [1]
    assert result["instances"].gt_classes.dtype == torch.int64
    assert "annotations" not in result
    assert repr(record) == before


def test_test_output_keeps_the_size_of_the_file(record):
    result = DetectionMapper(is_train=False, augmentations=resize_augmentation(80, 1333))(record)
    assert result["image"].shape == (3, 80, 120)
    assert (result["height"], result["width"]) == (40, 60)
    assert "instances" not in result


def test_boxes_are_clipped_and_unusable_ones_dropped(record):
    record["annotations"] = [
        annotation([50, 30, 100, 100], 0),
        annotation([5, 5, 0, 10], 1),  # no width
        annotation([70, 5, 10, 10], 2),  # outside
        annotation([1, 1, 30, 30], 3, iscrowd=1),
        annotation([1, 2, 3, 4], 4),
    ]
    instances = DetectionMapper(is_train=True)(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[50, 30, 60, 40], [1, 2, 4, 6]]
    assert instances.gt_classes.tolist() == [0, 4]


def test_image_without_objects(record):
    record["annotations"] = []
    instances = DetectionMapper(is_train=True, augmentations=digits_augmentation())(record)["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,)


def test_record_without_size_gets_that_of_the_file(record):
    result = DetectionMapper(is_train=False)({"file_name": record["file_name"]})
    assert (result["height"], result["width"]) == (40, 60)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_colour_modes_become_rgb(record, mode):
    Image.new("RGB", (60, 40), (153, 153, 153)).convert(mode).save(record["file_name"])
    assert DetectionMapper(is_train=False)(record)["image"][:, 3, 3].tolist() == [153, 153, 153]


def test_boxes_are_clipped_before_augmentation_too(record):
    """A shift must not bring into the picture what lies outside of it."""
    record["annotations"] = [annotation([-30, 5, 40, 10], 0), annotation([-30, 5, 20, 10], 1)]

    def shift(sample):
        assert sample["boxes"].tolist() == [[0, 5, 10, 15]]
        sample["boxes"] += 20
        return sample

    instances = DetectionMapper(is_train=True, augmentations=shift)(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[20, 25, 30, 35]]
    assert instances.gt_classes.tolist() == [0]


@pytest.fixture
def turned(tmp_path):
    """A file of 40 x 60 that is to be shown as 60 x 40; its stored top is white, and so is its right when shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (40, 60))
    stored.paste((255, 255, 255), (0, 0, 40, 10))
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    return str(tmp_path / "turned.jpg")


def test_exif_orientation_is_applied(record, turned):
    image = DetectionMapper(is_train=False)(record | {"file_name": turned})["image"]
    assert image.shape == (3, 40, 60)
    assert image[:, :, 52:].min() > 200 and image[:, :, :48].max() < 50


def test_frame_of_the_annotation_is_kept(record, turned):
    """Annotated without regard to the orientation: size, boxes and pixels stay those of the file."""
    result = DetectionMapper(is_train=True)(record | {"file_name": turned, "width": 40, "height": 60})
    assert result["image"].shape == (3, 60, 40)
    assert (result["height"], result["width"]) == (60, 40)
    assert result["image"][:, :8].min() > 200 and result["image"][:, 12:].max() < 50
    assert result["instances"].gt_boxes.tensor.tolist() == [[10, 5, 30, 13]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_warning_per_kind_from_all_workers(record, turned, tmp_path, capfd, monkeypatch, num_workers):
    Image.new("RGBA", (60, 40), (1, 2, 3, 0)).save(tmp_path / "transparent.png")
    _warned_flags.cache_clear()
    monkeypatch.setattr(logging.getLogger("detrx.data.mapper"), "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(logging.getLogger("detrx.data.mapper"), "propagate", False)
    sideways = {"file_name": turned, "width": 40, "height": 60}
    records = [record | change for change in (sideways, {"file_name": str(tmp_path / "transparent.png")}) * 3]
    for _ in range(2):  # as in two evaluations
        list(build_test_loader(records, DetectionMapper(is_train=False), num_workers=num_workers))
    lines = sorted(line for line in capfd.readouterr().err.splitlines() if line.startswith("image "))
    assert len(lines) == 2
    assert "transparent.png: it has transparent pixels" in lines[0]
    assert "turned.jpg: its EXIF orientation is not applied" in lines[1]


def test_missing_image(record):
    with pytest.raises(FileNotFoundError, match=r"image .*nowhere\.png does not exist"):
        DetectionMapper(is_train=True)(record | {"file_name": "nowhere.png"})


@pytest.mark.parametrize("keep", [0, 10, 60])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_image(record, tmp_path, keep, suffix):
    path = tmp_path / f"broken.{suffix}"
    Image.effect_noise((60, 40), 50).convert("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * keep // 100])
    with pytest.raises(ValueError, match=rf"image .*broken\.{suffix} cannot be read"):
        DetectionMapper(is_train=True)(record | {"file_name": str(path)})


def test_size_other_than_annotated(record):
    with pytest.raises(ValueError, match=r"picture\.png is 60 x 40 .* says 40 x 60"):
        DetectionMapper(is_train=True)(record | {"width": 40, "height": 60})


def test_cached_images_are_not_read_again(record):
    mapper = DetectionMapper(is_train=True, cache_mib=1)
    first = mapper(record)["image"].clone()
    mapper(record)["image"].zero_()
    Image.new("RGB", (60, 40)).save(record["file_name"])
    assert torch.equal(mapper(record)["image"], first)
    assert not torch.equal(DetectionMapper(is_train=True)(record)["image"], first)


def test_the_cache_is_bounded(record, tmp_path):
    mapper = DetectionMapper(is_train=True, cache_mib=1)
    wide = {**record, "file_name": str(tmp_path / "wide.png"), "width": 800, "height": 500}
    for each, size in ((wide, (800, 500)), (record, (60, 40))):  # 1.2 MB and 7 kB
        Image.new("RGB", size, (1, 2, 3)).save(each["file_name"])
        mapper(each)
        Image.new("RGB", size).save(each["file_name"])
    assert mapper(wide)["image"].max() == 0
    assert mapper(record)["image"].max() == 3


def test_mixed_box_modes(record):
    boxes = [annotation([10, 5, 20, 8]), annotation([1, 2, 11, 12], bbox_mode=BoxMode.XYXY_ABS)]
    result = DetectionMapper(is_train=True)({**record, "annotations": boxes})
    assert result["instances"].gt_boxes.tensor.tolist() == [[10, 5, 30, 13], [1, 2, 11, 12]]


def test_a_box_of_three_numbers(record):
    with pytest.raises(AssertionError):
        DetectionMapper(is_train=True)({**record, "annotations": [annotation([10, 5, 20])]})
