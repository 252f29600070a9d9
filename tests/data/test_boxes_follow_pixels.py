"""Boxes of coloured rectangles still fit the coloured pixels after every augmentation, and keep their classes."""

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.d2.structures import BoxMode
from detrx.data import (
    DetectionMapper,
    FixedSizeCrop,
    ScaleJitter,
    detr_augmentation,
    digits_augmentation,
    lsj_augmentation,
    transforms,
)

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
AUGMENTATIONS = {
    "detr": lambda: detr_augmentation(
        sizes=(90, 120, 150), max_size=220, sizes_before_crop=(80, 110), crop_range=(40, 80), crop_prob=0.7
    ),
    "lsj": lambda: lsj_augmentation(128),
    "lsj_without_padding": lambda: lsj_augmentation(128, pad=False),
    "lsj_keeping_all": lambda: lsj_augmentation(128, scale_range=(0.2, 3.0), min_visible=0.0),
    "digits": lambda: digits_augmentation(),
    "digits_moved": lambda: digits_augmentation(translate=0.2, scale=(0.7, 1.4)),
}
NEAR = 110  # less than half the way from one colour to another


def coloured(seed, height=100, width=140):
    """A black image with one rectangle of each colour, apart from each other, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    boxes = []
    for index, colour in enumerate(COLOURS):
        row, column = divmod(index, 2)
        h, w = (int(torch.randint(12, side // 2 - 8, (), generator=generator)) for side in (height, width))
        y = row * height // 2 + int(torch.randint(4, height // 2 - h - 3, (), generator=generator))
        x = column * width // 2 + int(torch.randint(4, width // 2 - w - 3, (), generator=generator))
        image[:, y : y + h, x : x + w] = colour[:, None, None]
        boxes.append([x, y, x + w, y + h])
    boxes = tv_tensors.BoundingBoxes(torch.tensor(boxes).float(), format="XYXY", canvas_size=(height, width))
    return {"image": tv_tensors.Image(image), "boxes": boxes}


def extent(image, colour):
    """Box of all pixels of a colour, None where there are none."""
    y, x = torch.nonzero((image.int() - colour.int()[:, None, None]).abs().amax(0) < NEAR, as_tuple=True)
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float() if len(x) else None


def sides(box):
    return box[2] - box[0], box[3] - box[1]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_fit(name):
    augment = AUGMENTATIONS[name]()
    checked = cut = 0
    for seed in range(80):
        torch.manual_seed(seed)
        before = coloured(seed)
        after = augment(before)
        image, boxes = after["image"].as_subclass(torch.Tensor), after["boxes"].as_subclass(torch.Tensor)
        assert len(boxes) == len(COLOURS) and image.dtype == torch.uint8
        height, width = image.shape[-2:]
        for box in boxes:
            if min(sides(box)) < 6:  # gone, nearly gone, or too small to tell its colour from a blend
                continue
            x, y = ((box[:2] + box[2:]) / 2).long().tolist()
            assert 0 <= x < width and 0 <= y < height
            pixels = extent(image, image[:, y, x])
            assert (pixels - box).abs().max() < 2.0, (seed, box, pixels)
            checked += 1
            cut += bool(min(box[0], box[1], width - box[2], height - box[3]) == 0)
    assert checked > 60
    assert cut > 5 or name == "digits"  # crops have cut boxes, and translations pushed them over the border


@pytest.mark.parametrize("name", ["detr", "lsj_keeping_all"])
def test_no_visible_object_loses_its_box_and_none_its_class(name, tmp_path):
    """Through the mapper, whose classes are those of the colours."""
    mapper = DetectionMapper(is_train=True, augmentations=AUGMENTATIONS[name](), min_box_size=1.0)
    kept = dropped = 0
    for seed in range(60):
        sample = coloured(seed)
        path = str(tmp_path / f"{seed}.png")
        Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(path)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": index}
            for index, box in enumerate(sample["boxes"].tolist())
        ]
        torch.manual_seed(seed)
        result = mapper({"file_name": path, "annotations": annotations})
        instances = result["instances"]
        found = dict(zip(instances.gt_classes.tolist(), instances.gt_boxes.tensor, strict=True))
        assert instances.image_size == tuple(result["image"].shape[-2:])
        for index, colour in enumerate(COLOURS):
            pixels = extent(result["image"], colour)
            if index in found:
                kept += 1
                if min(sides(found[index])) >= 6:
                    assert (pixels - found[index]).abs().max() < 2.0, (seed, index)
            else:
                dropped += 1
                assert pixels is None or min(sides(pixels)) < 3, (seed, index, pixels)  # a sliver at most
    assert kept > 120 and dropped > 5


@pytest.mark.parametrize(("min_visible", "left"), [(0.0, 3), (0.2, 2), (0.6, 1)])
def test_boxes_of_which_too_little_is_left_are_dropped(min_visible, left, monkeypatch):
    monkeypatch.setattr(transforms, "_draw", lambda low, high: low)  # crop at the top left
    image = tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    # All, half, a tenth and nothing of them is in the crop.
    boxes = [[5.0, 5, 15, 15], [10, 0, 30, 10], [18, 0, 38, 10], [25, 5, 35, 15]]
    sample = {
        "image": image,
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=(40, 40)),
    }
    result = FixedSizeCrop(20, min_visible=min_visible)(sample)["boxes"]
    expected = torch.tensor([[5.0, 5, 15, 15], [10, 0, 20, 10], [18, 0, 20, 10]])[:left]
    torch.testing.assert_close(result[:left].as_subclass(torch.Tensor), expected)
    rest = result[left:]
    assert ((rest[:, 2] - rest[:, 0]) * (rest[:, 3] - rest[:, 1]) == 0).all() and len(result) == 4
    assert sample["boxes"].tolist() == boxes  # what was given is as it was


def test_large_scale_jitter_scales_crops_and_pads():
    augment = lsj_augmentation(64, fill=(7, 8, 9), flip_prob=0.0)
    padded = whole = 0
    for seed in range(60):
        torch.manual_seed(seed)
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(60, 80))
        white = tv_tensors.Image(torch.full((3, 60, 80), 255, dtype=torch.uint8))
        image = augment({"image": white, "boxes": boxes})["image"]
        assert image.shape == (3, 64, 64)
        content = image[0] == 255
        height, width = int(content[:, 0].sum()), int(content[0].sum())
        assert content[:height, :width].all() and content.sum() == height * width  # at the top left
        assert (image[:, ~content] == torch.tensor([7, 8, 9])[:, None]).all()
        padded += height < 64 and width < 64
        whole += height == 64 and width == 64
    assert padded > 10 and whole > 5  # scales below 1 and at 2


def test_scales_cover_the_range():
    jitter = ScaleJitter(100, (0.1, 2.0))
    image = tv_tensors.Image(torch.zeros(3, 20, 50, dtype=torch.uint8))
    widths = []
    for seed in range(100):
        torch.manual_seed(seed)
        height, width = jitter({"image": image})["image"].shape[-2:]
        assert abs(height - 0.4 * width) <= 1
        widths.append(width)
    assert min(widths) in range(10, 20) and max(widths) in range(190, 201)
    thin = {"image": tv_tensors.Image(torch.zeros(3, 400, 1, dtype=torch.uint8))}
    assert ScaleJitter(100, (0.1, 0.1))(thin)["image"].shape == (3, 10, 1)  # never without a column


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lsj_augmentation(scale_range=(0.0, 1.0)), r"scale_range must be 0 < low <= high, got \(0.0, 1.0\)"),
        (lambda: lsj_augmentation(scale_range=(2.0, 0.1)), r"scale_range must be"),
        (lambda: lsj_augmentation(min_visible=1.5), r"min_visible must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_data_config(tmp_path):
    cfg = model_zoo.get_config("common/data/coco_lsj.py").dataloader
    sample = coloured(1)
    path = str(tmp_path / "a.png")
    Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(path)
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3} for box in sample["boxes"].tolist()]
    result = instantiate(cfg.train.mapper)({"file_name": path, "annotations": annotations})
    assert result["image"].shape == (3, 1024, 1024) and result["instances"].image_size == (1024, 1024)
    assert instantiate(cfg.test.mapper)({"file_name": path})["image"].shape == (3, 731, 1024)
    assert cfg.train.dataset.names == "coco_2017_train"
