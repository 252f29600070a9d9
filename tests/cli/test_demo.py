import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.d2.structures import BoxMode
from detrx.errors import InvalidInputError
from tests.cli.demo_files import paint, run


@pytest.fixture
def dataset(folder):
    """Its ground truth agrees with the rectangle in a.png, and in b.png lies elsewhere."""
    name, path = "detrx_test_rectangles", folder / "annotations.json"
    boxes = [[10, 10, 20, 14], [1, 1, 8, 8]]
    annotations = [
        {"id": i, "image_id": 10 * i, "category_id": 7, "bbox": box, "area": 1, "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    images = [{"id": 10 * i, "file_name": f"{s}.png", "width": 60, "height": 40} for i, s in ((1, "a"), (2, "b"))]
    categories = [{"id": 3, "name": "disc"}, {"id": 7, "name": "rectangle"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances(name, {}, str(path), str(folder))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def has_colour(path, colour):
    return any(rgb == colour for _, rgb in Image.open(path).getcolors(1 << 24))


GREEN, RED, YELLOW = (0x2E, 0xE6, 0x4D), (0xFF, 0x3B, 0x30), (0xFF, 0xD6, 0x0A)


def test_files_in_drawings_and_json_out(folder, weights, tmp_path):
    out = tmp_path / "out"
    run(
        "--weights",
        weights,
        "--input",
        folder,
        "--output",
        out,
        "--device",
        "cpu",
        "--opts",
        "dataloader.test.mapper.augmentations.size=80",
    )
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "detections.json"]
    results = json.loads((out / "detections.json").read_text())
    assert [Path(r["file_name"]).name for r in results] == ["a.png", "b.png"]
    assert [r["image_id"] for r in results] == [1, 2]
    assert {r["score"] for r in results} == {0.75}
    for result, box in zip(results, ([10, 10, 20, 14], [20, 4, 24, 32]), strict=True):
        assert result["bbox"] == pytest.approx(box, abs=1)
    drawn = Image.open(out / "a.png")
    assert drawn.size == (720, 480)
    assert drawn.getpixel((10 * 12 - 1, 20 * 12)) != (0, 0, 0)  # left side of the box
    assert drawn.getpixel((50 * 12, 20 * 12)) == (0, 0, 0)


def test_dataset_with_ground_truth_and_contact_sheet(dataset, weights, tmp_path):
    out = tmp_path / "out"
    run("--weights", weights, "--dataset", dataset, "--contact-sheet", "--output", out)
    results = json.loads((out / "detections.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in results] == [(10, 7), (20, 7)]  # ids of the annotation file
    assert has_colour(out / "a.png", GREEN) and not has_colour(out / "a.png", RED)
    assert has_colour(out / "b.png", RED) and has_colour(out / "b.png", YELLOW)
    assert Image.open(out / "contact_sheet.png").width > 800


def test_threshold_and_number_of_images(dataset, weights, tmp_path):
    run("--weights", weights, "--dataset", dataset, "--num", 1, "--score-threshold", 0.05, "--output", tmp_path / "low")
    low = json.loads((tmp_path / "low" / "detections.json").read_text())
    assert sorted(r["score"] for r in low) == [0.1, 0.75]
    run("--weights", weights, "--dataset", dataset, "--num", 1, "--score-threshold", 0.8, "--output", tmp_path / "high")
    assert json.loads((tmp_path / "high" / "detections.json").read_text()) == []


def test_averaged_weights_are_preferred(folder, tmp_path):
    weights = tmp_path / "both.pth"
    torch.save({"model": {"score": torch.tensor(0.4)}, "ema": {"model": {"score": torch.tensor(0.9)}}}, weights)
    run("--weights", weights, "--input", folder / "a.png", "--output", tmp_path / "out")
    (result,) = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert result["score"] == pytest.approx(0.9)


def film(path, boxes, rate=5):
    """A video of white rectangles, one in each frame."""
    pytest.importorskip("av")
    from detrx.data.video import VideoWriter

    with VideoWriter(path, Fraction(rate)) as writer:
        for box in boxes:
            frame = Image.new("RGB", (60, 40))
            frame.paste((255, 255, 255), box)
            writer.write(frame)
    return path


def test_video_by_frames(weights, tmp_path):
    clip = film(tmp_path / "clip.mp4", [(4 * i, 8, 4 * i + 16, 32) for i in range(7)])
    out = tmp_path / "out"
    run("--weights", weights, "--input", clip, "--every", 2, "--batch-size", 3, "--video-output", "--output", out)
    stems = [f"clip_{frame:06d}" for frame in (0, 2, 4, 6)]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*(f"{stem}.png" for stem in stems), "clip_detections.mp4", "detections.json"]
    )
    results = json.loads((out / "detections.json").read_text())
    assert [r["frame"] for r in results] == [0, 2, 4, 6]
    assert [r["image_id"] for r in results] == [1, 2, 3, 4]
    assert [r["timestamp"] for r in results] == pytest.approx([0, 0.4, 0.8, 1.2])
    for result in results:
        assert result["bbox"] == pytest.approx([4 * result["frame"], 8, 16, 24], abs=1)

    from detrx.data.video import Video

    drawn = Video(out / "clip_detections.mp4")
    assert drawn.rate == Fraction(5, 2)
    for stem, frame in zip(stems, drawn, strict=True):
        picture = Image.open(out / f"{stem}.png")
        assert picture.size == frame["image"].size == (720, 480)
        difference = ImageChops.difference(picture, frame["image"]).resize((1, 1), Image.Resampling.BOX)
        assert max(difference.getpixel((0, 0))) < 8


def test_images_and_videos_of_one_folder(folder, weights, tmp_path):
    film(folder / "aa.mp4", [(10, 10, 30, 24)] * 5)
    run("--weights", weights, "--input", folder, "--num", 4, "--output", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.joinpath("out").glob("*.png")) == [
        "a.png",
        *(f"aa_{frame:06d}.png" for frame in range(3)),
    ]
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [r.get("frame") for r in results] == [None, 0, 1, 2]


def test_broken_video_is_named_and_left_out(folder, weights, tmp_path, capsys):
    clip = film(tmp_path / "clip.mp4", [(4, 8, 20, 32)] * 3)
    clip.write_bytes(clip.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"error: video .*clip\.mp4 cannot be read: "):
        run("--weights", weights, "--input", clip, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing could be read
    with pytest.raises(SystemExit, match=r"error: video .*clip\.mp4 cannot be read: "):
        run("--weights", weights, "--input", clip, folder, "--output", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 2


def test_video_that_breaks_off_after_some_frames(folder, weights, tmp_path, monkeypatch):
    clip = film(tmp_path / "clip.mp4", [(4, 8, 20, 32)] * 3)

    def frames(self):
        yield {"file_name": self.file_name, "frame": 0, "timestamp": 0.0, "image": Image.open(folder / "a.png")}
        raise InvalidInputError(f"video {self.file_name} cannot be read: broken here")

    monkeypatch.setattr("detrx.data.video.Video.__iter__", frames)
    with pytest.raises(SystemExit, match=r"error: video .*clip\.mp4 cannot be read: broken here"):
        run("--weights", weights, "--input", clip, folder, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [(r["image_id"], r.get("frame")) for r in results] == [(1, 0), (2, None), (3, None)]


def test_videos_without_the_package(weights, tmp_path, monkeypatch):
    clip = film(tmp_path / "clip.mp4", [(4, 8, 20, 32)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit, match="error: videos need PyAV: pip install av"):
        run("--weights", weights, "--input", clip, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere/*.png"], "no image at nowhere"),
        (["--dataset", "digits_vla"], "'digits_vla' is not registered.*digits_val"),
        (["--weights", "nowhere.pth", "--input", "."], r"nowhere\.pth does not exist|no image"),
    ],
)
def test_wrong_arguments_end_with_one_clear_line(arguments, message, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run("--weights", weights, *arguments, "--output", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config-file", "nowhere.py"], r"config file nowhere\.py does not exist"),
        (["--opts", "dataloader.test.mapper.augmentation.size=90"], "unknown config key.*augmentations.size"),
    ],
)
def test_wrong_config(changes, message, folder, weights, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run("--weights", weights, "--input", folder, "--output", tmp_path / "out", *changes)


def test_missing_and_foreign_weights(folder, tmp_path):
    arguments = ["--input", folder, "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"error: .*none\.pth does not exist"):
        run("--weights", tmp_path / "none.pth", *arguments)
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match=r"error: .*other\.pth"):
        run("--weights", tmp_path / "other.pth", *arguments)


def test_bad_file_of_a_dataset(dataset, folder, weights, tmp_path):
    paint(folder / "a.png", (10, 10, 30, 24), size=(61, 40))
    with pytest.raises(SystemExit, match=r"error: image .*a\.png is 61 x 40 .*annotation says 60 x 40"):
        run("--weights", weights, "--dataset", dataset, "--contact-sheet", "--output", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.png", "contact_sheet.png", "detections.json"]


def test_class_beyond_the_names_is_drawn_with_its_number(dataset, weights, tmp_path):
    """The detector calls everything class 1, and the dataset has one class now."""
    file = str(Path(MetadataCatalog.get(dataset).image_root) / "a.png")
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(dataset)
    MetadataCatalog.get(dataset).set(thing_classes=["disc"], thing_dataset_id_to_contiguous_id={3: 0})
    records = [{"file_name": file, "image_id": 1, "width": 60, "height": 40}]
    annotation = {"bbox": [10, 10, 20, 14], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    DatasetCatalog.register(dataset, lambda: [{**record, "annotations": [annotation]} for record in records])
    run("--weights", weights, "--dataset", dataset, "--output", tmp_path / "out")
    assert has_colour(tmp_path / "out" / "a.png", RED) and has_colour(tmp_path / "out" / "a.png", YELLOW)
    (result,) = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert result["category_id"] is None  # class 1 is no category of the dataset, and category 1 would be another
