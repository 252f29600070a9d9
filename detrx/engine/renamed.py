"""Old names of what has moved, so that configs saved by earlier versions still load."""

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

__all__ = ["RENAMED_ARGUMENTS", "RENAMED_TARGETS", "rename_targets"]

RENAMED_TARGETS = {
    "detrx.d2.embedded.evaluation_coco.COCOEvaluator": "detrx.evaluation.COCOEvaluator",
    "detrx.d2.evaluation.COCOEvaluator": "detrx.evaluation.COCOEvaluator",
    "detrx.d2.embedded.solver.WarmupParamScheduler": "detrx.d2.solver.WarmupParamScheduler",
    "detrx.d2.embedded.solver.get_default_optimizer_params": "detrx.d2.solver.get_default_optimizer_params",
    "detrx.modeling.AnchorMatcher": "detrx.projects.mr_detr.AnchorMatcher",
    "detrx.modeling.VotingAssigner": "detrx.projects.mr_detr.VotingAssigner",
    # Detectron2's own names, so that a config saved beside it also loads where it is not installed
    "detectron2.evaluation.COCOEvaluator": "detrx.evaluation.COCOEvaluator",
    "detectron2.evaluation.coco_evaluation.COCOEvaluator": "detrx.evaluation.COCOEvaluator",
    "detectron2.solver.WarmupParamScheduler": "detrx.d2.solver.WarmupParamScheduler",
    "detectron2.solver.get_default_optimizer_params": "detrx.d2.solver.get_default_optimizer_params",
}
"""Old dotted name to new dotted name. Add a row when something that configs name moves."""

RENAMED_ARGUMENTS: Mapping[str, Mapping[str, tuple[str, Mapping[Any, Any]]]] = {
    "detrx.projects.paq_detr.QualityAwareAssignment": {"rounding": ("positives", {"ceil": "paper", "round": "article"})}
}
"""For each dotted name, its old arguments: their new names, and new values for those that have changed, too."""


def rename_targets(cfg: Any) -> None:
    """Replace every ``_target_`` in ``cfg``, however deeply nested, and every argument of one that has been renamed.
    Changes ``cfg`` in place."""
    if not isinstance(cfg, (DictConfig, ListConfig)):
        return
    keys: Iterable[Any] = cfg if isinstance(cfg, DictConfig) else range(len(cfg))
    for key in keys:
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        value = cfg[key]
        if key == "_target_" and isinstance(value, str):
            cfg[key] = RENAMED_TARGETS.get(value, value)
        else:
            rename_targets(value)
    if isinstance(cfg, DictConfig):
        for old, (new, values) in RENAMED_ARGUMENTS.get(str(cfg.get("_target_")), {}).items():
            if old in cfg:
                value = cfg.pop(old)
                cfg[new] = values.get(value, value)
