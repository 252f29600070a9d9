"""A COCO file of one's own on the command line of the real tools: trained on by two processes, evaluated, used."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {3: "square", 7: "disc"}


def write_shapes(folder: Path, split: str, count: int, classes: dict = CLASSES, ids: Callable = int) -> list[str]:
    """A split of pictures with one shape each; returns the overrides for it. `ids` makes ids of 1, 2, ..."""
    rng = random.Random(split)
    (folder / split).mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in classes.items()]}
    for index in range(1, count + 1):
        picture = Image.new("RGB", (64, 48), "white")
        category, side, x, y = rng.choice(list(classes)), rng.randint(10, 20), rng.randint(0, 40), rng.randint(0, 25)
        draw = ImageDraw.Draw(picture)
        (draw.rectangle if category == min(classes, key=str) else draw.ellipse)((x, y, x + side, y + side), fill="navy")
        picture.save(folder / split / f"{index}.png")
        coco["images"].append({"id": ids(index), "file_name": f"{index}.png", "width": 64, "height": 48})
        box = {"bbox": [x, y, side, side], "area": side**2, "iscrowd": 0}
        coco["annotations"].append({"id": ids(index), "image_id": ids(index), "category_id": category, **box})
    (folder / f"{split}.json").write_text(json.dumps(coco))
    return [f"dataset.{split}_json={split}.json", f"dataset.{split}_images={split}"]


def run(tool: str, *arguments: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / tool, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        env={**os.environ, "DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_train_evaluate_and_detect(tmp_path: Path):
    files = [*write_shapes(tmp_path, "train", 6), *write_shapes(tmp_path, "val", 3)]
    config = str(ROOT / "tests" / "integration" / "tiny_digits.py")
    run(
        "lazyconfig_train_net.py", "--config-file", config, "--num-gpus", "2", "--dist-url", "auto", *files,
        "dataset.name=shapes", "dataloader.train.total_batch_size=2", "train.max_iter=2", "train.eval_period=2",
        "train.output_dir=out", folder=tmp_path,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    scores = {key: value for line in lines for key, value in line.items() if key.startswith("bbox/")}
    assert {"bbox/AP-square", "bbox/AP-disc"} <= scores.keys() and not any("AP-0" in key for key in scores)

    trained = ["--config-file", str(tmp_path / "out" / "config.yaml")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    weights = str(tmp_path / "out" / "model_final.pth")
    output = run("lazyconfig_train_net.py", *trained, "--eval-only", "--resume", folder=tmp_path)
    assert "AP50" in output and "shapes_val" in (tmp_path / "out" / "config.yaml").read_text()
    (tmp_path / "val.json").unlink()  # classes are known from the config
    run(
        "demo.py", *trained, "--weights", weights, "--input", str(tmp_path / "val"), "--score-threshold", "0",
        "--output", "drawn", folder=elsewhere,
    )  # fmt: skip
    detections = json.loads((elsewhere / "drawn" / "detections.json").read_text())
    assert {each["category_id"] for each in detections} == set(CLASSES)


def test_ids_of_any_kind_on_the_whole_way(tmp_path: Path):
    """Text as ids of images and annotations, a number and equal text as ids of classes, which have the same name."""
    classes = {"7": "shape", 7: "shape"}
    ids = "img-{}".format
    train = write_shapes(tmp_path, "train", 4, classes, ids)
    val = write_shapes(tmp_path, "val", 8, classes, ids)
    output = run("check_dataset.py", "--annotations", "val.json", "--images", "val", folder=tmp_path)
    assert "no errors, 1 warnings" in output and "category name shape" in output
    config = str(ROOT / "tests" / "integration" / "tiny_digits.py")
    common = ["--config-file", config, *train, *val]
    run("visualize_data.py", *common, "--num", "2", "--output", "data.png", folder=tmp_path)
    run(
        "lazyconfig_train_net.py", *common, "dataloader.train.total_batch_size=2", "train.max_iter=1",
        "train.eval_period=1", "train.output_dir=out", "dataloader.evaluator.max_dets_per_image=5", folder=tmp_path,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    scores = {key: value for line in lines for key, value in line.items() if key.startswith("bbox/")}
    assert {"bbox/AP-shape (7)", "bbox/AP-shape ('7')"} <= scores.keys() and "bbox/AP-shape" not in scores
    results = "out/inference/coco_instances_results.json"
    found = json.loads((tmp_path / results).read_text())
    assert {each["image_id"] for each in found} == {ids(k) for k in range(1, 9)}
    assert {repr(each["category_id"]) for each in found} == {"7", "'7'"}

    scored = ("--results", results, "--annotations", "val.json", "--max-dets", "5", "--json", "scores.json")
    output = run("evaluate_results.py", *scored, "--per-class", "--nms", "0.9", folder=tmp_path)
    assert "shape ('7')" in output and "AR5" in output and "AR10" not in output
    run("evaluate_results.py", *scored, folder=tmp_path)
    again = json.loads((tmp_path / "scores.json").read_text())["AP"]
    assert again["AP"] == pytest.approx(scores["bbox/AP"], abs=1e-9)

    saved = str(tmp_path / "out" / "config.yaml")
    output = run("lazyconfig_train_net.py", "--config-file", saved, "--eval-only", "--resume", folder=tmp_path)
    assert "AP-shape" not in output and "shape ('7')" in output
    run("report.py", "out", "--no-model", folder=tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "shape (&#39;7&#39;)" in page and "AR5" in page


def test_nothing_to_train_on_is_one_line(tmp_path: Path):
    train = write_shapes(tmp_path, "train", 3)
    content = json.loads((tmp_path / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "train.json").write_text(json.dumps(content))
    config = str(ROOT / "tests" / "integration" / "tiny_digits.py")
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "lazyconfig_train_net.py", "--config-file", config, *train]
        + ["train.eval_period=0", "train.output_dir=out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "there is nothing to train on; training leaves out all 3 boxes: 3 crowds (iscrowd 1)" in line
