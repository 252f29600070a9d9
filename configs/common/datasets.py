"""What each dataset fixes in a config: how long its epochs are, its classes, and how detections are scored."""

from typing import Any

from omegaconf import DictConfig

from detrx.d2.config import LazyCall as L
from detrx.errors import InvalidInputError
from detrx.evaluation import COCOEvaluator, LVISEvaluator

# epoch: iterations of 16 images. That of COCO, and of LVIS, which has about as many images and repeats some of them, is
#   the one that published schedules count; the others pass all images of the training set once.
# epochs: of a config whose name does not say it.
# num_detections, score_threshold: of `model.postprocess`. AP counts the best detections of each class in an image, so
#   that their number matters, and two detectors are compared with the same.
# repeat_threshold: of `build_train_loader`.
DATASETS = {
    "coco": dict(
        train="coco_2017_train",
        test="coco_2017_val",
        epoch=7500,  # 118,287 images
        epochs=12,
        num_classes=80,
        num_detections=100,
        score_threshold=0.0,
        evaluator=COCOEvaluator,
        repeat_threshold=None,
    ),
    "lvis": dict(
        train="lvis_v1_train",
        test="lvis_v1_val",
        epoch=7500,  # 100,170 images; those with classes that less than a thousandth of the images show are repeated
        epochs=12,
        num_classes=1203,
        num_detections=300,
        score_threshold=0.0,
        evaluator=LVISEvaluator,
        repeat_threshold=0.001,
    ),
    "objects365": dict(
        train="objects365_v2_train",
        test="objects365_v2_val",
        epoch=108894,  # 1,742,289 images
        epochs=12,
        num_classes=365,
        num_detections=300,
        score_threshold=0.0,
        evaluator=COCOEvaluator,
        repeat_threshold=None,
    ),
    "nuimages": dict(
        train="nuimages_train",
        test="nuimages_val",
        epoch=4205,  # 67,279 images
        epochs=12,
        num_classes=10,
        num_detections=100,
        score_threshold=0.0,
        evaluator=COCOEvaluator,
        repeat_threshold=None,
    ),
    "cityscapes": dict(
        train="cityscapes_train",
        test="cityscapes_val",
        epoch=186,  # 2,975 images
        epochs=64,
        num_classes=8,
        num_detections=100,
        score_threshold=0.0,
        evaluator=COCOEvaluator,
        repeat_threshold=None,
    ),
}

_PERIOD = 5000  # iterations between evaluations on COCO; about so many, in whole epochs, elsewhere


def on_dataset(cfg: DictConfig, name: str) -> None:
    """Set data, classes, detections and evaluator of a config in place; schedules are set by `variant`."""
    dataset, loaders = DATASETS[name], cfg.dataloader
    loaders.train.dataset.names = dataset["train"]
    loaders.test.dataset.names = dataset["test"]
    loaders.train.pop("repeat_threshold", None)
    if dataset["repeat_threshold"] is not None:
        loaders.train.repeat_threshold = dataset["repeat_threshold"]
    loaders.evaluator = L(dataset["evaluator"])(dataset_name="${..test.dataset.names}")
    cfg.model.decoder.heads.num_classes = dataset["num_classes"]
    detections = cfg.model.postprocess.get("detections", cfg.model.postprocess)
    detections.num_detections = dataset["num_detections"]
    detections.score_threshold = dataset["score_threshold"]
    whole_epochs = dataset["epoch"] * max(1, round(_PERIOD / dataset["epoch"]))
    cfg.train.eval_period = _PERIOD if name == "coco" else whole_epochs


def dataset_of(cfg: DictConfig) -> dict[str, Any]:
    """What `DATASETS` says of the dataset that a config trains on.

    Raises:
        InvalidInputError: it is none of them.
    """
    name = cfg.dataloader.train.dataset.names
    found = [dataset for dataset in DATASETS.values() if dataset["train"] == name]
    if not found:
        known = ", ".join(dataset["train"] for dataset in DATASETS.values())
        raise InvalidInputError(f"dataloader.train.dataset.names is {name!r}, but epochs are known of {known}")
    return found[0]
