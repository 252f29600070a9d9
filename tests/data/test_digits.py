import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detrx.d2.config import instantiate
from detrx.d2.data import MetadataCatalog
from detrx.data import digits, get_detection_dataset_dicts
from detrx.data.digits import VARIANTS, DigitsSpec, generate, overlap_over_smaller, prepare, render_canvas
from detrx.data.digits.__main__ import main
from detrx.model_zoo import get_config

SMALL = DigitsSpec(canvas=64, digits_per_image=(1, 4), num_train=6, num_val=4)
CLEAN = DigitsSpec(backgrounds=("solid",), shapes_per_image=(0, 0), noise=(0.0, 0.0))


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_spec_gives_same_bytes_and_another_seed_others(tmp_path):
    first, second = (content(prepare(tmp_path / parent / "digits", SMALL, progress=False)) for parent in "ab")
    assert first == second
    other = content(prepare(tmp_path / "c" / "digits", replace(SMALL, seed=1), progress=False))
    assert all(other[name] != first[name] for name in first)


def test_images_do_not_depend_on_how_many_there_are(tmp_path):
    few = content(prepare(tmp_path / "few", SMALL, progress=False))
    many = content(prepare(tmp_path / "many", replace(SMALL, num_train=9, num_val=5), progress=False))
    pngs = [name for name in few if name.endswith(".png")]
    assert len(pngs) == 10
    assert all(few[name] == many[name] for name in pngs)


def test_train_and_val_use_disjoint_samples_of_every_class():
    splits = digits.split_samples(DigitsSpec())
    train, val = splits["train"][2], splits["val"][2]
    assert not set(train) & set(val)
    assert len(train) + len(val) == 1797
    assert set(splits["train"][1]) == set(splits["val"][1]) == set(range(10))


def test_folder_is_valid_coco_within_the_spec(tmp_path):
    spec = replace(SMALL, digit_size=(10, 20), digits_per_image=(2, 4), num_train=12)
    root = prepare(tmp_path / "digits", spec, progress=False)
    coco = COCO(str(root / "annotations" / "train.json"))
    assert len(coco.imgs) == 12
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [str(i) for i in range(10)]
    for image in coco.imgs.values():
        assert Image.open(root / "train" / image["file_name"]).size == (image["width"], image["height"]) == (64, 64)
        annotations = coco.imgToAnns[image["id"]]
        assert 1 <= len(annotations) <= 4
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64
            assert max(w, h) <= 20
            assert annotation["area"] == w * h


def test_box_of_a_digit_is_its_ink():
    samples, labels, _ = digits.split_samples(CLEAN)["train"]
    spec = replace(CLEAN, digits_per_image=(1, 1), digit_size=(14, 40))
    for seed in range(40):
        image, boxes, _ = render_canvas(np.random.default_rng(seed), spec, samples, labels)
        pixels = image.reshape(-1, 3).astype(float)
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        background = colours[counts.argmax()]
        ink = colours[((colours - background) ** 2).sum(axis=1).argmax()] - background
        opacity = ((pixels - background) @ ink / (ink @ ink)).reshape(image.shape[:2])
        outer, inner = (bounding_box(opacity >= 0.5 + d) for d in (-0.02, 0.02))  # colours are rounded
        (box,) = boxes
        assert (outer[:2] <= box[:2]).all() and (box[:2] <= inner[:2]).all()
        assert (inner[2:] <= box[2:]).all() and (box[2:] <= outer[2:]).all()
        assert 14 <= max(box[2:] - box[:2]) <= 40


def test_box_of_a_covered_digit_is_what_remains_visible():
    # Full squares instead of digits: every digit is one colour, and its visible part the pixels of that colour.
    spec = replace(CLEAN, digits_per_image=(6, 6), max_overlap=0.5, min_visible=0.4, max_rotation=0.0)
    squares, labels = np.full((10, 8, 8), 16.0), np.arange(10)
    shrunk = 0
    for seed in range(30):
        image, boxes, _ = render_canvas(np.random.default_rng(seed), spec, squares, labels)
        colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        colours = np.delete(colours, counts.argmax(), axis=0)
        visible = {tuple(bounding_box((image == colour).all(axis=-1))) for colour in colours}
        assert visible == {tuple(box) for box in boxes}
        shrunk += sum(box[2] - box[0] != box[3] - box[1] for box in boxes)
    assert shrunk > 0


def bounding_box(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_overlap_is_bounded_but_occurs(variant):
    spec = VARIANTS[variant]
    samples, labels, _ = digits.split_samples(spec)["train"]
    largest, most = 0.0, 0
    for seed in range(40):
        image, boxes, classes = render_canvas(np.random.default_rng(seed), spec, samples, labels)
        assert image.shape == (spec.canvas, spec.canvas, 3)
        assert len(boxes) == len(classes)
        overlaps = overlap_over_smaller(boxes) - np.eye(len(boxes))
        assert overlaps.max() <= spec.max_overlap
        largest, most = max(largest, overlaps.max()), max(most, len(boxes))
    assert largest > 0.05
    assert most > 0.8 * spec.digits_per_image[1]


def test_overlap_over_smaller():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 7, 20], [50, 50, 60, 60]])
    assert overlap_over_smaller(boxes).tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]


def generate_and_log(root: Path, log: Path) -> None:
    real = generate._generate

    def logged(*args):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        real(*args)

    generate._generate = logged
    prepare(root, SMALL, progress=False)
    assert len(content(root)) == 13


def test_processes_that_start_together_generate_once(tmp_path):
    root, log = tmp_path / "deep" / "digits", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=generate_and_log, args=(root, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert [p for p in root.parent.iterdir() if "partial" in p.name] == []


def test_interrupted_generation_leaves_nothing_and_dead_ones_are_cleaned_up(tmp_path, monkeypatch):
    calls = []

    def fail_later(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render_canvas(*args)

    monkeypatch.setattr(generate, "render_canvas", fail_later)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "digits", SMALL, progress=False)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []

    (tmp_path / ".digits.partial-1" / "train").mkdir(parents=True)
    prepare(tmp_path / "digits", SMALL, progress=False)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["digits"]


def test_data_of_other_settings_are_refused(tmp_path):
    root = prepare(tmp_path / "digits", SMALL, progress=False)
    before = content(root)
    with pytest.raises(FileExistsError, match=r"canvas: 64 there, 80 wanted"):
        prepare(root, replace(SMALL, canvas=80), progress=False)
    assert content(root) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(FileExistsError, match=r"foreign exists but has no readable spec\.json"):
        prepare(foreign, SMALL, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"digit_size": (12, 200)},
        {"digits_per_image": (0, 3)},
        {"noise": (3.0, 1.0)},
        {"shapes": ("blob",)},
        {"num_val": 0},
        {"val_fraction": 1.0},
    ],
)
def test_impossible_specs_are_refused(change):
    with pytest.raises(ValueError, match=f"DigitsSpec.*{next(iter(change))}|at least one image"):
        DigitsSpec(**change)


def test_registered_datasets_are_generated_when_first_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(VARIANTS, "digits", SMALL)
    dataloader = get_config("common/data/digits.py").dataloader
    assert list(tmp_path.iterdir()) == []
    instantiate(dataloader.evaluator)  # Detectron2's script may build it before any loader
    assert (tmp_path / "digits" / "spec.json").is_file()
    records = get_detection_dataset_dicts("digits_train")
    assert len(records) == SMALL.num_train
    assert all(Path(record["file_name"]).is_file() for record in records)
    metadata = MetadataCatalog.get("digits_train")
    assert metadata.thing_classes == [str(i) for i in range(10)]
    assert json.loads(Path(metadata.json_file).read_text(encoding="utf-8"))["images"][0]["file_name"] == "000000.png"


def test_command_line(tmp_path, capsys, monkeypatch):
    arguments = ["digits", "--out", str(tmp_path / "mine"), "--num-train", "3", "--num-val", "2", "--seed", "5"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert "3 training and 2 validation images" in capsys.readouterr().out
    assert len(list((tmp_path / "mine").rglob("*.png"))) == 5
    monkeypatch.setattr("sys.argv", [*arguments, "--variant", "digits_hard"])
    with pytest.raises(SystemExit):
        main()
    assert "made with other settings" in capsys.readouterr().err
