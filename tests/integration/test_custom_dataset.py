"""A COCO file of one's own on the command line of the real tools: trained on by two processes, evaluated, used."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {3: "square", 7: "disc"}


def write_shapes(folder: Path, split: str, count: int) -> list[str]:
    """A split of pictures with one shape each; returns the overrides for it."""
    rng = random.Random(split)
    (folder / split).mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in CLASSES.items()]}
    for index in range(1, count + 1):
        picture = Image.new("RGB", (64, 48), "white")
        category, side, x, y = rng.choice(list(CLASSES)), rng.randint(10, 20), rng.randint(0, 40), rng.randint(0, 25)
        draw = ImageDraw.Draw(picture)
        (draw.rectangle if category == 3 else draw.ellipse)((x, y, x + side, y + side), fill="navy")
        picture.save(folder / split / f"{index}.png")
        coco["images"].append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 48})
        box = {"bbox": [x, y, side, side], "area": side**2, "iscrowd": 0}
        coco["annotations"].append({"id": index, "image_id": index, "category_id": category, **box})
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
