"""Images with a white rectangle, and runs of the demo with a detector that finds it."""

from pathlib import Path

import torch
from PIL import Image

from detrx.cli import demo

CONFIG = str(Path(__file__).with_name("fake_detector_config.py"))


def paint(path, box, size=(60, 40)):
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def run(*arguments):
    demo.main(["--config-file", CONFIG, *map(str, arguments)])


def write_images(folder):
    """Two images, and a file that is none."""
    paint(folder / "a.png", (10, 10, 30, 24))
    paint(folder / "b.png", (20, 4, 44, 36))
    (folder / "notes.txt").write_text("no image")
    return folder


def write_weights(path):
    torch.save({"model": {"score": torch.tensor(0.75)}}, path)
    return str(path)
