"""Every config of the repository: it loads, says what its name says, and its model can be built and run.

Models are built on the meta device, without memory for weights, and shared by the tests.
"""

import functools
import inspect
import re

import pytest
import torch
from omegaconf import DictConfig, ListConfig

import detrx.data  # noqa: F401  (registers the datasets)
from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.d2.data import DatasetCatalog
from detrx.engine.config import without_pretrained
from detrx.modeling import Predictions

CONFIGS = [name.removesuffix(".py") for name in model_zoo.list_models()]
COCO = [name for name in CONFIGS if "_digits" not in name and "_photos" not in name]

# <detector>[_<form>]_<backbone>[_c5|_dc5][_5scale][_900q][_50ep][_<dataset>], on COCO for 12 epochs where the name
# does not say; or <detector>[_<form>]_{digits,photos}[_200q]. See configs/README.md.
NAME = re.compile(
    r"(?P<detector>[a-z0-9_]+?)_((digits|photos)(_\d+q)?|(?P<backbone>r18|r50|r101|swin_t|swin_l|convnext_[tsbl])"
    r"(_(?P<level>c5|dc5))?(_(?P<levels>5)scale)?(_(?P<queries>\d+)q)?(_(?P<epochs>24|36|48|50)ep)?"
    r"(_(?P<dataset>lvis|objects365|nuimages|cityscapes))?)"
)
TIMM = {
    "r18": "resnet18.tv_in1k",
    "r50": "resnet50.tv_in1k",
    "r101": "resnet101.tv_in1k",
    "swin_t": "swin_tiny_",
    "swin_l": "swin_large_",
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
    "convnext_b": "convnext_base",
    "convnext_l": "convnext_large",
}
DATASETS = {  # training set, number of classes, iterations of an epoch, detections in an image
    None: ("coco_2017_train", 80, 7500, 100),
    "lvis": ("lvis_v1_train", 1203, 7500, 300),
    "objects365": ("objects365_v2_train", 365, 108894, 300),
    "nuimages": ("nuimages_train", 10, 4205, 100),
    "cityscapes": ("cityscapes_train", 8, 186, 100),
}
DROP = {12: 11, 24: 20, 36: 30, 48: 40, 50: 40, 64: 59}  # epochs: after which the learning rate falls to a tenth


@functools.cache
def load(name: str) -> DictConfig:
    return model_zoo.get_config(name)


MODELS: dict[str, torch.nn.Module] = {}  # by their description; schedules share them


def build(name: str) -> torch.nn.Module:
    cfg = without_pretrained(load(name).model)
    description = str(cfg)
    if description not in MODELS:
        with torch.device("meta"):
            MODELS[description] = instantiate(cfg).eval()
    return MODELS[description]


@functools.cache
def predict(model: torch.nn.Module) -> Predictions:
    with torch.device("meta"), torch.no_grad():
        return model.predict(torch.randn(1, 3, 320, 352), None)["main"]


def parse(name: str) -> dict:
    return NAME.fullmatch(name.split("/")[1]).groupdict()


@pytest.mark.parametrize("name", CONFIGS)
def test_name(name: str):
    folder, config = name.split("/")
    assert NAME.fullmatch(config), f"{name} is not named by the convention in configs/README.md"
    if (model_zoo.config_root() / folder).is_dir():
        assert config.startswith(f"{folder}_"), f"{name} is in the folder of another detector"


@pytest.mark.parametrize("name", COCO)
def test_config_is_what_its_name_says(name: str):
    said, cfg = parse(name), load(name)
    backbone = cfg.model.backbone
    epochs = int(said["epochs"] or (64 if said["dataset"] == "cityscapes" else 12))
    dataset, classes, epoch, detections = DATASETS[said["dataset"]]
    iterations = epochs * epoch
    assert backbone.name.startswith(TIMM[said["backbone"]]) and cfg.dataloader.train.dataset.names == dataset
    assert cfg.model.decoder.heads.num_classes == classes
    postprocess = cfg.model.postprocess.get("detections", cfg.model.postprocess)
    assert (postprocess.num_detections, postprocess.score_threshold) == (detections, 0.0)
    dilated = (backbone.get("model_args") or {}).get("output_stride") == 16
    assert dilated == (said["level"] == "dc5")
    if said["level"]:
        assert list(backbone.out_features) == ["res5"]
    if said["queries"]:
        assert cfg.model.query_source.num_queries == int(said["queries"])
    if said["levels"]:
        assert cfg.model.tokenizer.num_levels == int(said["levels"])
    assert cfg.dataloader.train.total_batch_size == 16 and cfg.train.max_iter == iterations
    multiplier, drop = instantiate(cfg.lr_multiplier), DROP[epochs] / epochs
    rates = [multiplier(i) for i in (0, drop - 2 / iterations, drop)]
    assert rates == pytest.approx([1.0, 1.0, 0.1])


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_but_the_model_is_there(name: str):
    """What Detectron2's own training script and ours read; data loaders are described, not built."""
    cfg = load(name)
    assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
    assert set(cfg.dataloader) == {"train", "test", "evaluator"}
    check_calls(cfg)
    datasets = {cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names}
    assert datasets <= set(DatasetCatalog.list())
    assert cfg.dataloader.evaluator.dataset_name == cfg.dataloader.test.dataset.names
    assert set(load("common/train").train) <= set(cfg.train)
    assert cfg.train.max_iter > 0 and cfg.train.clip_grad.enabled
    assert cfg.optimizer.fused
    assert {cfg.dataloader[part].device for part in ("train", "test")} == {cfg.train.device}
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(i / 100) for i in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.01) and rates[-1] <= 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_optimizer_has_every_parameter(name: str):
    cfg, model = load(name), build(name)
    arguments = {key: instantiate(value) for key, value in cfg.optimizer.params.items() if key != "_target_"}
    groups = cfg.optimizer.params._target_(model, **arguments)
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(rates) == set(trained.values())
    if name in COCO:
        factors = {key: rates[value] / cfg.optimizer.lr for key, value in trained.items()}
        assert {round(factor, 6) for key, factor in factors.items() if key.startswith("backbone.")} == {0.1}
        assert factors["decoder.layers.0.norm3.weight"] == 1.0


@pytest.mark.parametrize("name", CONFIGS)
def test_model_runs(name: str):
    model = build(name)
    assert tuple(load(name).model.neck.in_channels) == model.backbone.out_channels
    predictions = predict(model)
    said = parse(name)["dataset"]
    classes = 10 if "_digits" in name else DATASETS[said][1]
    assert predictions.logits.shape[-1] - classes in (0, 1) and predictions.boxes.shape[-1] == 4  # 1: "no object"
    assert predictions.logits.shape[:-1] == predictions.boxes.shape[:-1]


def check_calls(node: object) -> None:
    """Every description of a call in a config has arguments that the function takes, and all that it needs."""
    if isinstance(node, ListConfig):
        for item in node:
            check_calls(item)
    if not isinstance(node, DictConfig):
        return
    for value in node.values():
        check_calls(value)
    if "_target_" not in node:
        return
    target = node["_target_"]
    if isinstance(target, str):
        from hydra.utils import get_object

        target = get_object(target)
    given = dict.fromkeys(set(node) - {"_target_"})
    if "model" in inspect.signature(target).parameters:
        given["model"] = None  # of the optimizer's parameters; the training script sets it
    if target.__module__.startswith("torch.optim"):
        return
    try:
        inspect.signature(target).bind(**given)
    except TypeError as error:
        raise AssertionError(f"{target.__qualname__}: {error}") from error
