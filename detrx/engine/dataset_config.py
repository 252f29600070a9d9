"""The `dataset` of a config: the user's own COCO files, which replace the datasets that the config names."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detrx.coco.records import categories_of, read_categories
from detrx.coco.values import Id, id_order
from detrx.config_zoo.overrides import escaped
from detrx.data.datasets.custom import register_custom
from detrx.errors import InvalidInputError

__all__ = ["DATASET_DEFAULTS", "check_dataset", "numbers_of_classes", "use_dataset"]

DATASET_DEFAULTS = {"name": "custom", "train_json": "", "train_images": "", "val_json": "", "val_images": ""}
_LOADERS = {"train": "train", "val": "test"}
_NUM_CLASSES = "model.decoder.heads.num_classes"


def use_dataset(cfg: DictConfig, changed: set[str]) -> None:
    """Register the datasets of ``cfg.dataset``, and set loaders, evaluator and heads for them.

    ``dataset.categories`` is set to the classes of the annotation files. A config saved by a training already has it.
    Then only ``changed`` keys have an effect, and the other files are not opened, because they may not exist here.

    Args:
        cfg: a config with ``dataset``, which is removed if it has no files.
        changed: the keys of ``dataset`` that an override has changed.

    Raises:
        ValueError, FileNotFoundError: a key, a file, or the content of a file is wrong, or the config lacks a key that
            has to be set.
    """
    dataset = cfg.dataset
    if unknown := set(dataset) - {*DATASET_DEFAULTS, "categories"}:
        raise InvalidInputError(f"dataset.{min(unknown)} is unknown; dataset has {', '.join(DATASET_DEFAULTS)}")
    if not any(dataset[key] for key in DATASET_DEFAULTS if key != "name"):
        if changed:
            raise InvalidInputError(
                f"dataset.name={dataset.name} has no files: give dataset.train_json and train_images"
            )
        del cfg["dataset"]
        return

    saved = bool(dataset.get("categories"))
    files = {split: _files(dataset, split, must_exist=not saved or bool(changed & _keys(split))) for split in _LOADERS}
    categories = _categories(dataset, files, changed)
    register_custom(str(dataset.name), files, categories)
    dataset.categories = [{"id": category, "name": name} for category, name in categories.items()]
    for split, part in _LOADERS.items():
        if not saved or changed & _keys(split):
            _set(cfg, f"dataloader.{part}.dataset.names", f"{dataset.name}_{split}")
    for evaluator in _evaluators(cfg):
        target = evaluator.get("_target_")
        if getattr(target, "__name__", str(target)).endswith("LVISEvaluator"):
            raise InvalidInputError(
                "dataset.* are COCO files, but this config has an LVISEvaluator: use a config for COCO"
            )
        if (not saved or changed & _keys("val")) and not OmegaConf.is_interpolation(evaluator, "dataset_name"):
            evaluator.dataset_name = f"{dataset.name}_val"
    if not saved or "train_json" in changed:
        _set(cfg, _NUM_CLASSES, len(categories))


def check_dataset(cfg: DictConfig) -> None:
    """Check, after all overrides, that the whole model has the number of classes of ``cfg.dataset``.

    Raises:
        ValueError: a part of the model has another number.
    """
    if "dataset" not in cfg:
        return
    dataset, count = cfg.dataset, len(cfg.dataset.categories)
    for key, value in numbers_of_classes(cfg):
        if value != count:
            raise InvalidInputError(f"{key}={value}, but dataset {dataset.name!r} has {count} classes")


def numbers_of_classes(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every number of classes in the model."""
    for key, value in _values(cfg.model, "num_classes", "model"):
        if not key.startswith("model.backbone."):  # the backbone's are those of ImageNet
            yield key, value


def _keys(split: str) -> set[str]:
    """Keys of ``dataset`` that affect a split."""
    return {"name", f"{split}_json", f"{split}_images"}


def _files(dataset: DictConfig, split: str, must_exist: bool) -> tuple[str, str]:
    """Annotation file and image folder of a split, or two empty strings. Makes their paths in the config absolute."""
    json_key, images_key = f"{split}_json", f"{split}_images"
    for key, other in ((json_key, images_key), (images_key, json_key)):
        if dataset[key] and not dataset[other]:
            raise InvalidInputError(f"dataset.{key} is given, but not dataset.{other}")
    if not dataset[json_key]:
        return "", ""
    for key in (json_key, images_key):
        dataset[key] = escaped(os.path.abspath(os.path.expanduser(str(dataset[key]))))
    if must_exist and not os.path.isfile(dataset[json_key]):
        raise FileNotFoundError(f"dataset.{json_key}={dataset[json_key]}: there is no such file")
    if must_exist and not os.path.isdir(dataset[images_key]):
        raise FileNotFoundError(f"dataset.{images_key}={dataset[images_key]}: there is no such folder")
    return dataset[json_key], dataset[images_key]


def _categories(dataset: DictConfig, files: dict[str, tuple[str, str]], changed: set[str]) -> dict[Id, str]:
    """The classes by id, on which training files, validation files and a saved config must agree."""
    known: dict[str, dict[Id, str]] = {}  # by origin
    saved = OmegaConf.to_container(dataset.get("categories") or ListConfig([]))
    if saved and "train_json" not in changed:
        known["dataset.categories"] = categories_of({"categories": saved}, "dataset")
    for split, (json_file, _) in files.items():
        if json_file and (not saved or f"{split}_json" in changed):
            known[json_file] = read_categories(json_file)
    (first, categories), *others = known.items()
    for other, found in others:
        if found != categories:
            raise InvalidInputError(f"the categories of {first} and {other} differ: {_difference(categories, found)}")
    return categories


def _difference(first: dict[Id, str], second: dict[Id, str]) -> str:
    category = min((i for i in {*first, *second} if first.get(i) != second.get(i)), key=id_order)
    return f"id {category!r} is {first.get(category)!r} in the first, {second.get(category)!r} in the second"


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    if OmegaConf.select(cfg, key) is None:
        raise InvalidInputError(f"dataset.* sets {key}, which this config does not have")
    OmegaConf.update(cfg, key, value)


def _evaluators(cfg: DictConfig) -> Iterator[DictConfig]:
    evaluator = cfg.dataloader.get("evaluator")
    for each in evaluator if isinstance(evaluator, ListConfig) else [evaluator]:
        if isinstance(each, DictConfig):
            yield each


def _values(node: Any, wanted: str, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all keys called ``wanted``."""
    if isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _values(item, wanted, f"{path}.{index}")
    elif isinstance(node, DictConfig):
        keys: Iterable[Any] = node
        for key in keys:
            if key == wanted:
                yield f"{path}.{key}", node[key]
            elif not (OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)):
                yield from _values(node[key], wanted, f"{path}.{key}")
