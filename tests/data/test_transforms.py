import os
import subprocess
import sys

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detrx.data import (
    RandomSizeCrop,
    ResizeLongestSide,
    ResizeShortestSide,
    detr_augmentation,
    digits_augmentation,
    lsj_augmentation,
    resize_augmentation,
)

AUGMENTATIONS = {
    "detr": lambda: detr_augmentation(
        sizes=(60, 80, 100), max_size=150, sizes_before_crop=(50, 70), crop_range=(40, 60), crop_prob=0.5
    ),
    "resize": lambda: resize_augmentation(70, 90),
    "digits": lambda: digits_augmentation(translate=0.2, scale=(0.7, 1.4), invert_prob=0.0, jitter=0.0),
}


def painted(height, width, box):
    """A black image with a white rectangle, and the box of the rectangle."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    boxes = tv_tensors.BoundingBoxes(torch.tensor([box]).float(), format="XYXY", canvas_size=(height, width))
    return {"image": tv_tensors.Image(image), "boxes": boxes}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_box_follows_the_pixels(name):
    augment = AUGMENTATIONS[name]()
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        sample = augment(painted(60, 90, (20, 15, 65, 40)))
        y, x = torch.nonzero(sample["image"][0] > 190, as_tuple=True)  # padding is grey
        box = sample["boxes"][0]
        if len(x) == 0:  # cropped away
            assert box[2] - box[0] < 2 or box[3] - box[1] < 2
            continue
        pixels = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
        assert (pixels - box).abs().max() < 2.0, (seed, pixels, box)
        seen.add(tuple(pixels.tolist()))
    assert len(seen) > (0 if name == "resize" else 10)


def test_detr_sizes_flip_and_crop():
    augment = detr_augmentation(sizes=(64, 96), max_size=120, sizes_before_crop=(50,), crop_range=(40, 45))
    shapes, flipped = set(), 0
    for seed in range(60):
        torch.manual_seed(seed)
        sample = augment(painted(60, 90, (0, 0, 10, 60)))
        shapes.add(tuple(sample["image"].shape[-2:]))
        flipped += bool(sample["boxes"][0, 0] > 0)
    whole = {(64, 96), (80, 120)}  # 60 x 90 to 64, and to 96 but for the cap
    assert whole < shapes  # and crops of various shapes
    assert all(min(shape) in (64, 96) or max(shape) == 120 for shape in shapes)
    assert 5 < flipped < 55


def test_resize_takes_all_sizes_and_respects_the_cap():
    resize = ResizeShortestSide([20, 30, 40], max_size=50)
    shapes = {tuple(resize(painted(40, 60, (1, 1, 9, 9)))["image"].shape[-2:]) for _ in range(40)}
    assert shapes == {(20, 30), (30, 45), (33, 50)}
    with pytest.raises(ValueError, match="max_size must exceed"):
        ResizeShortestSide(800, max_size=800)


@pytest.mark.parametrize("cap", [50, 73, None])
def test_sizes_are_those_of_torchvision(cap):
    generator = torch.Generator().manual_seed(0)
    for height, width in torch.randint(9, 60, (60, 2), generator=generator).tolist():
        image = {"image": tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))}
        ours, theirs = ResizeShortestSide(37, cap)(image), v2.Resize(37, max_size=cap)(image)
        assert ours["image"].shape == theirs["image"].shape
        if cap:
            ours, theirs = ResizeLongestSide(cap)(image), v2.Resize(None, max_size=cap)(image)
            assert ours["image"].shape == theirs["image"].shape


EXTREME = {
    "detr": lambda: detr_augmentation(),
    "detr_with_crop": lambda: detr_augmentation(crop_prob=1.0),
    "lsj": lambda: lsj_augmentation(1024),
    "lsj_without_padding": lambda: lsj_augmentation(1024, pad=False),
    "test": lambda: resize_augmentation(800, 1333),
    "test_lsj": lambda: ResizeLongestSide(1024),
    "digits": lambda: digits_augmentation(translate=0.2, scale=(0.7, 1.4)),
}


@pytest.mark.parametrize("shape", [(2, 4000), (4000, 2), (1, 30000), (1, 1)])
@pytest.mark.parametrize("name", EXTREME)
def test_images_of_extreme_shape_keep_a_pixel_and_their_boxes(name, shape):
    augment = EXTREME[name]()
    height, width = shape
    along = max(shape)
    for seed in range(4):
        torch.manual_seed(seed)
        first, last = along // 4, along - along // 4
        box = (first, 0, last, height) if width == along else (0, first, width, last)
        result = augment(painted(height, width, box))
        rows, columns = result["image"].shape[-2:]
        assert min(rows, columns) >= 1 and max(rows, columns) <= max(1333, along)
        x1, y1, x2, y2 = (result["boxes"][0] / torch.tensor([columns, rows, columns, rows])).tolist()
        assert 0 <= x1 <= x2 <= 1.001 and 0 <= y1 <= y2 <= 1.001
        if name.startswith("test") and along > 1:
            assert (x1, y1, x2, y2) == pytest.approx((0.25, 0, 0.75, 1) if width == along else (0, 0.25, 1, 0.75))


def test_crop_of_a_small_image_is_at_most_the_image():
    shapes = {tuple(RandomSizeCrop(20, 40)(painted(30, 10, (1, 1, 5, 5)))["image"].shape[-2:]) for _ in range(60)}
    assert {width for _, width in shapes} == {10}
    assert {height for height, _ in shapes} <= set(range(20, 31))
    assert len(shapes) > 5


def test_crop_lies_inside_the_image():
    white = painted(60, 30, (0, 0, 30, 60))
    assert all(RandomSizeCrop(20, 25)(white)["image"].min() == 255 for _ in range(30))


def test_digits_keep_their_geometry_by_default_but_not_their_colours():
    augment = digits_augmentation()
    sample = painted(20, 20, (2, 3, 9, 12))
    sample["image"][0] = 40
    colours = set()
    for seed in range(80):
        torch.manual_seed(seed)
        result = augment(sample)
        assert result["boxes"].tolist() == sample["boxes"].tolist()
        colours.add(tuple(result["image"][:, 0, 0].tolist()))
    assert colours == {(40, 0, 0), (0, 40, 0), (0, 0, 40), (215, 255, 255), (255, 215, 255), (255, 255, 215)}


def test_importing_needs_no_torchvision_and_using_it_says_so():
    code = """
import sys
sys.modules["torchvision"] = None
import detrx.data
try:
    detrx.data.digits_augmentation()
except ImportError as error:
    print(error)
"""
    environment = os.environ | {"DETRX_D2": "embedded", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "image transforms need torchvision: pip install torchvision"
