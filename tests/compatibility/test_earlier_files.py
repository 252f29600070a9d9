"""What users have from earlier versions still works: their checkpoints, the configs beside them, the names of ours.

`data/` was made by version 0.1.0 before its modules were reordered: `checkpoint.pth.xz` and `config.yaml` by two of
four iterations of a small Mr. DETR++ on the tiny digits of tests/integration, `expected.json` by the two others and the
evaluation after them; `configs.txt` lists the configs, `targets.txt` all that they build, as a `config.yaml` has it.
"""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from detrx.engine import load_config
from detrx.model_zoo import list_models

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"

# The datasets are registered by the config of tests/integration.
TRAIN = """
import runpy, sys
from detrx.d2.config import LazyConfig
LazyConfig.load("tests/integration/tiny_digits.py")
sys.argv[0] = "tools/lazyconfig_train_net.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_training_goes_on_from_an_earlier_checkpoint(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_0000001.pth").write_bytes(lzma.decompress((DATA / "checkpoint.pth.xz").read_bytes()))
    (run / "last_checkpoint").write_text("model_0000001.pth")
    command = [
        sys.executable,
        "-c",
        TRAIN,
        "--config-file",
        DATA / "config.yaml",
        "--resume",
        f"train.output_dir={run}",
    ]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    expected = json.loads((DATA / "expected.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    losses = {str(line["iteration"]): line["total_loss"] for line in lines if "total_loss" in line}
    losses = {iteration: losses[iteration] for iteration in expected["losses"]}  # the one before is written again
    assert losses == pytest.approx(expected["losses"], rel=1e-5)
    found = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    images = {each["image_id"] for each in expected["detections"]}
    found = sorted((each for each in found if each["image_id"] in images), key=order)
    for each, wanted in zip(found, sorted(expected["detections"], key=order), strict=True):
        assert each["category_id"] == wanted["category_id"]
        assert each["bbox"] == pytest.approx(wanted["bbox"], abs=1e-2)
        assert each["score"] == pytest.approx(wanted["score"], abs=1e-5)


def order(detection: dict) -> tuple:
    return detection["image_id"], -round(detection["score"], 5), detection["category_id"]


def test_what_saved_configs_name_can_be_built(tmp_path: Path):
    targets = (DATA / "targets.txt").read_text().split()
    config = OmegaConf.load(DATA / "config.yaml")
    config.dataloader.every_target = [{"_target_": name} for name in targets]
    OmegaConf.save(config, tmp_path / "config.yaml")
    loaded = load_config(str(tmp_path / "config.yaml"), []).dataloader.every_target
    assert len(loaded) == len(targets) > 70
    for each in loaded:
        assert callable(get_object(each["_target_"]))


CONFIGS = (DATA / "configs.txt").read_text().split()


def test_the_zoo_lists_the_configs_by_the_same_names():
    names = {"/".join(part for part in path.split("/")[1:] if part != "configs") for path in CONFIGS}
    assert len(names) == len(CONFIGS) and names <= set(list_models())


@pytest.mark.parametrize("path", CONFIGS)
def test_configs_are_where_they_were(path: str):
    assert "model" in load_config(str(ROOT / path), [])
