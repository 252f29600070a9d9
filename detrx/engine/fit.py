"""Whether a model and the datasets of its config fit together: numbers of classes, boxes and queries."""

import logging
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from detrx.d2.data import DatasetCatalog
from detrx.data import TrainLoader, class_names_of
from detrx.engine.config import ConfigError
from detrx.engine.dataset_config import numbers_of_classes

__all__ = ["check_classes", "warn_of_too_many_boxes"]

logger = logging.getLogger(__name__)


def check_classes(cfg: DictConfig, part: str) -> None:
    """Check that all parts of the model have as many classes as the datasets of a loader.

    Args:
        part: "train" or "test", of ``dataloader``. A dataset whose classes are not known before it is loaded is read
            for them.

    Raises:
        ConfigError: a part of the model has another number.
    """
    names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names")
    for name in [names] if isinstance(names, str) else names if isinstance(names, ListConfig) else []:
        if name not in DatasetCatalog or not (classes := class_names_of(name)):
            continue
        for key, value in numbers_of_classes(cfg):
            if value != len(classes):
                raise ConfigError(f"{key}={value}, but dataset {name!r} has {len(classes)} classes")


def warn_of_too_many_boxes(model: nn.Module, loader: Iterable[Any]) -> None:
    """Warn, once, if images have more boxes than the model has queries: each query can match one box only."""
    source = getattr(model, "query_source", None)
    queries = getattr(source, "num_queries", None)
    if queries is None or not isinstance(loader, TrainLoader) or len(loader.num_boxes) == 0:
        return
    queries *= getattr(source, "patterns_per_anchor", 1)
    images, most = int((loader.num_boxes > queries).sum()), int(loader.num_boxes.max())
    if images:
        logger.warning(
            "%d of %d training images have more boxes than the model has queries (%d), which match one box each. The "
            "most are %d boxes, in %s: raise model.query_source.num_queries",
            images,
            len(loader.num_boxes),
            queries,
            most,
            loader.file_name(int(loader.num_boxes.argmax())),
        )
