"""Commands in a locale that only knows ASCII."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from detrx.d2 import USE_DETECTRON2

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "engine"
reads_utf8 = pytest.mark.skipif(USE_DETECTRON2, reason="Detectron2 reads configs in the encoding of the locale")


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "LANG")}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TOY)])
    command = [sys.executable, "-m", "detrx.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    text = (TOY / "toy_config.py").read_text(encoding="utf-8")
    path.write_text(f'# größe\n{text}\ntrain.note = "größe 日本"\ntrain.max_iter = 4\n', encoding="utf-8")
    return path


@reads_utf8
def test_a_training_and_its_resume(tmp_path: Path, config: Path):
    folder = tmp_path / "out"
    trained = run("lazyconfig_train_net", "--config-file", config, f"train.output_dir={folder}")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "Logging error" not in trained.stderr and "gr\\xf6\\xdfe" in trained.stdout
    saved = yaml.unsafe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert saved["train"]["note"] == "größe 日本"
    assert "größe" in (folder / "log.txt").read_text(encoding="utf-8")
    resumed = run(
        "lazyconfig_train_net", "--resume", "--config-file", folder / "config.yaml", "train.max_iter=6",
        "train.note=ß",
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "train.max_iter: 4 -> 6" in resumed.stdout
    assert "note" in yaml.unsafe_load((folder / "config.yaml").read_text(encoding="utf-8"))["train"]


@reads_utf8
def test_a_folder_with_a_name_that_is_not_ascii(tmp_path: Path, config: Path):
    folder = tmp_path / "größe"
    trained = run("lazyconfig_train_net", "--config-file", config, f"train.output_dir={folder}")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert {"config.yaml", "model_final.pth", "metrics.json"} <= set(os.listdir(folder))
    resumed = run(
        "lazyconfig_train_net", "--resume", "--config-file", folder / "config.yaml", f"train.output_dir={folder}"
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr


def test_names_of_classes(tmp_path: Path):
    categories = [{"id": 1, "name": "größe"}, {"id": 2, "name": "日本"}]
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    image = {"id": 1, "file_name": "a.png", "width": 16, "height": 16}
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    checked = run("check_dataset", "--annotations", tmp_path / "a.json", "--images", tmp_path)
    assert checked.returncode in (0, 1) and "Traceback" not in checked.stderr, checked.stderr
    assert "gr\\xf6\\xdfe" in checked.stdout
