"""The evaluator of a config, and where its files go."""

import os

from omegaconf import DictConfig, open_dict

from detrx.d2.config import instantiate
from detrx.d2.evaluation import DatasetEvaluator
from detrx.engine.config import _parameters

__all__ = ["build_evaluator"]


def build_evaluator(cfg: DictConfig) -> DatasetEvaluator:
    """Build ``dataloader.evaluator`` of a config.

    An evaluator that takes an ``output_dir``, about which the config says nothing, writes to ``inference`` in
    ``train.output_dir``: there `COCOEvaluator` leaves the detections as ``coco_instances_results.json``. With
    ``output_dir=None`` in the config nothing is written.
    """
    evaluator = cfg.dataloader.evaluator
    if "output_dir" in _parameters(evaluator) and "output_dir" not in evaluator:
        with open_dict(evaluator):
            evaluator.output_dir = os.path.join(cfg.train.output_dir, "inference")
    return instantiate(evaluator)
