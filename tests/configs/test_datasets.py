"""What a dataset fixes in a config, and where it says so."""

import re
from pathlib import Path

import pytest

from detrx import model_zoo
from detrx.d2.config import LazyConfig
from detrx.evaluation import COCOEvaluator, LVISEvaluator

ROOT = Path(__file__).resolve().parents[2]
DATASETS = LazyConfig.load(str(ROOT / "configs" / "common" / "datasets.py"), "DATASETS")
variant = LazyConfig.load(str(ROOT / "configs" / "common" / "variants.py"), "variant")
CALIBRATED = "mr_detr/mr_detr_deformable_calibrated_r50"


def test_the_readme_has_the_same_numbers():
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+)[^|]*\| (\d+) \| (\d+) \| every", text, flags=re.MULTILINE)
    assert {name: tuple(int(value.replace(",", "")) for value in values) for name, *values in rows} == {
        name: (dataset["epoch"], dataset["epochs"], dataset["num_detections"]) for name, dataset in DATASETS.items()
    }


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("config", ["dab_detr/dab_detr_r50", CALIBRATED])
def test_a_config_on_another_dataset(config: str, name: str):
    cfg, dataset = model_zoo.get_config(config), DATASETS[name]
    variant(cfg, dataset=name, epochs=24)
    assert cfg.dataloader.train.dataset.names == dataset["train"]
    assert cfg.dataloader.evaluator.dataset_name == cfg.dataloader.test.dataset.names == dataset["test"]
    assert cfg.dataloader.evaluator._target_ is (LVISEvaluator if name == "lvis" else COCOEvaluator)
    assert cfg.dataloader.train.get("repeat_threshold") == (0.001 if name == "lvis" else None)
    assert cfg.model.decoder.heads.num_classes == dataset["num_classes"]
    detections = cfg.model.postprocess.detections if config == CALIBRATED else cfg.model.postprocess
    assert detections.num_detections == dataset["num_detections"]
    assert cfg.train.max_iter == 24 * dataset["epoch"]
    assert name == "coco" or cfg.train.eval_period % dataset["epoch"] == 0


def test_there_and_back():
    cfg, plain = (model_zoo.get_config("dino/dino_r50") for _ in range(2))
    variant(cfg, dataset="lvis")
    assert cfg != plain
    variant(cfg, dataset="coco")
    assert cfg == plain


def test_epochs_are_those_of_the_config_s_dataset():
    cfg = model_zoo.get_config("dino/dino_r50_nuimages")
    variant(cfg, epochs=36)
    assert cfg.train.max_iter == 36 * 4205
