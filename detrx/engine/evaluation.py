"""Building the evaluator of a config."""

import copy
import os

from omegaconf import DictConfig, ListConfig, open_dict

from detrx.config_zoo.overrides import escaped
from detrx.d2.config import instantiate
from detrx.d2.evaluation import DatasetEvaluator
from detrx.engine.config import call_parameters
from detrx.errors import InvalidInputError

__all__ = ["build_evaluator", "evaluator_for"]


def build_evaluator(cfg: DictConfig) -> DatasetEvaluator | list[DatasetEvaluator]:
    """Build ``dataloader.evaluator`` of a config, one or (with Detectron2) several.

    If an evaluator has a parameter ``output_dir`` that the config does not set, it writes to ``inference`` in
    ``train.output_dir``; `COCOEvaluator` saves the detections there as ``coco_instances_results.json``. With
    ``output_dir=None`` in the config nothing is written.
    """
    evaluator = cfg.dataloader.evaluator
    for each in evaluator if isinstance(evaluator, ListConfig) else [evaluator]:
        if "output_dir" in call_parameters(each) and "output_dir" not in each:
            with open_dict(each):
                each.output_dir = escaped(os.path.join(cfg.train.output_dir, "inference"))
    return instantiate(evaluator)


def evaluator_for(cfg: DictConfig, dataset: str) -> DatasetEvaluator:
    """Build the evaluator of a config for another dataset. It writes no files.

    Raises:
        ValueError: the config has several.
    """
    cfg = copy.deepcopy(cfg)
    evaluator = cfg.dataloader.evaluator
    if isinstance(evaluator, ListConfig):
        raise InvalidInputError(f"dataloader.evaluator: expected one evaluator, got {len(evaluator)}")
    with open_dict(cfg):
        cfg.dataloader.test.dataset.names = dataset
        for key, value in (("dataset_name", dataset), ("output_dir", None)):
            if key in call_parameters(evaluator):
                evaluator[key] = value
    return build_evaluator(cfg)
