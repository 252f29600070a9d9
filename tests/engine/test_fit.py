"""Numbers of classes, boxes and queries that do not fit together are told before a training begins."""

import argparse
import json
import types

import pytest
from omegaconf import OmegaConf

from detrx import model_zoo
from detrx.cli import lazyconfig_train_net
from detrx.d2.config import instantiate
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.data import build_train_loader
from detrx.engine import ConfigError, load_config
from detrx.engine.dataset_config import numbers_of_classes
from detrx.engine.fit import check_classes, warn_of_too_many_boxes

DIGITS = [name for name in model_zoo.list_models("*_digits") if "teacher" not in name]
DATASETS = {"dino/dino_r50": 80, "dino/dino_r50_nuimages": 10, "dino/dino_r50_cityscapes": 8}


@pytest.mark.parametrize("name", DIGITS)
def test_every_part_of_every_detector_is_checked(name):
    cfg = load_config(name, [])
    check_classes(cfg, "train")
    check_classes(cfg, "test")
    keys = [key for key, _ in numbers_of_classes(cfg)]
    assert "model.decoder.heads.num_classes" in keys
    for key in keys:
        for count in (5, 91):
            wrong = load_config(name, [f"{key}={count}"])
            for part in ("train", "test"):
                with pytest.raises(
                    ConfigError, match=rf"num_classes={count}, but dataset 'digits_\w+' has 10 classes$"
                ):
                    check_classes(wrong, part)


@pytest.mark.parametrize("name", DATASETS)
def test_published_datasets(name):
    cfg = model_zoo.get_config(name)
    check_classes(cfg, "train")
    cfg.model.decoder.heads.num_classes = 7
    with pytest.raises(ConfigError, match=rf"num_classes=7, but dataset '\w+' has {DATASETS[name]} classes$"):
        check_classes(cfg, "test")


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_classes_that_only_the_annotation_file_knows(tmp_path, kind):
    file = tmp_path / "größe.json"
    categories = [{"id": 7 * k, "name": f"c{k}"} for k in range(1, 4)]
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}), encoding="utf-8")
    name = f"only_the_file_knows_{kind}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(json_file=str(file), evaluator_type=kind)
    try:
        cfg = load_config("deformable_detr/deformable_detr_digits", [f"dataloader.train.dataset.names=[{name}]"])
        with pytest.raises(ConfigError, match=f"num_classes=10, but dataset '{name}' has 3 classes"):
            check_classes(cfg, "train")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_check_comes_before_the_training(tmp_path):
    args = argparse.Namespace(resume=False, eval_only=False)
    options = ["model.decoder.heads.num_classes=5", f"train.output_dir={tmp_path}", "train.device=cpu"]
    cfg = load_config("deformable_detr/deformable_detr_digits", options)
    with pytest.raises(ConfigError, match="num_classes=5, but dataset 'digits_val' has 10 classes"):
        lazyconfig_train_net.do_train(args, cfg)
    with pytest.raises(ConfigError, match="num_classes=5, but dataset 'digits_val' has 10 classes"):
        lazyconfig_train_net.do_test(cfg, None)
    assert not list(tmp_path.iterdir())


def loader(*counts, crowds=0):
    records = [
        {
            "file_name": f"{index}.png",
            "width": 8,
            "height": 8,
            "annotations": [{"iscrowd": int(k < crowds)} for k in range(count + crowds)],
        }
        for index, count in enumerate(counts)
    ]
    return build_train_loader(records, mapper=dict, total_batch_size=1, seed=0)


def test_images_with_more_boxes_than_queries_are_told_once(caplog):
    model = types.SimpleNamespace(query_source=types.SimpleNamespace(num_queries=50))
    warn_of_too_many_boxes(model, loader(3, 51, 400, 50))
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of 4 training images have more boxes than the model has queries (50), which match one box each. "
        "The most are 400 boxes, in 2.png: raise model.query_source.num_queries"
    )
    caplog.clear()
    warn_of_too_many_boxes(model, loader(3, 50, crowds=30))  # crowds are not matched
    warn_of_too_many_boxes(types.SimpleNamespace(), loader(400))
    warn_of_too_many_boxes(model, [[]])
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "overrides", "queries"),
    [
        ("deformable_detr/deformable_detr_digits", [], 5),
        ("detr/detr_digits", [], 5),
        ("dab_detr/dab_detr_digits", ["model.query_source.num_patterns=3"], 15),
    ],
)
def test_detectors_say_how_many_queries_they_have(name, overrides, queries, caplog):
    cfg = load_config(name, ["model.query_source.num_queries=5", *overrides])
    model = instantiate(OmegaConf.merge(cfg.model, {"backbone": {"pretrained": False}}))
    warn_of_too_many_boxes(model, loader(queries))
    assert not caplog.records
    warn_of_too_many_boxes(model, loader(queries + 1))
    assert f"1 of 1 training images have more boxes than the model has queries ({queries})" in caplog.text
