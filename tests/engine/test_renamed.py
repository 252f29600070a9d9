"""Configs that name things by where they were in an earlier version."""

from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from detrx import model_zoo
from detrx.d2.config import LazyCall, LazyConfig
from detrx.engine.config import load_config
from detrx.engine.renamed import RENAMED_TARGETS, rename_targets

OLD, NEW = next(iter(RENAMED_TARGETS.items()))


def test_nested_targets_are_renamed_and_nothing_else():
    before = {
        "_target_": OLD,
        "name": OLD,
        "parts": [{"_target_": OLD, "inner": {"_target_": "torch.nn.ReLU", "inner": [{"_target_": OLD}]}}, [OLD, 1]],
        "link": "${parts.0}",
        "to_set": "???",
        "nothing": None,
    }
    cfg = OmegaConf.create(before)
    rename_targets(cfg)
    relu = {"_target_": "torch.nn.ReLU", "inner": [{"_target_": NEW}]}
    after = {**before, "_target_": NEW, "parts": [{"_target_": NEW, "inner": relu}, [OLD, 1]]}
    assert OmegaConf.to_container(cfg) == after


def test_arguments_are_renamed_with_their_values():
    old = {"_target_": "detrx.projects.paq_detr.QualityAwareAssignment", "top_k": 3, "rounding": "round"}
    cfg = OmegaConf.create({"methods": [old, {**old, "rounding": "ceil"}, {"_target_": "a.b", "rounding": "round"}]})
    rename_targets(cfg)
    rounded, ceiled, other = cfg.methods
    assert "rounding" not in rounded and (rounded.positives, rounded.top_k) == ("article", 3)
    assert ceiled.positives == "paper" and other.rounding == "round"
    assert get_object(rounded["_target_"])(top_k=3, positives=rounded.positives).assigner.positives(1.4) == 1


def test_callables_stay():
    cfg = LazyCall(nn.Sequential)(inner=LazyCall(nn.ReLU)())
    rename_targets(cfg)
    assert cfg["_target_"] is nn.Sequential and cfg.inner["_target_"] is nn.ReLU


@pytest.mark.parametrize("name", sorted(set(RENAMED_TARGETS.values())))
def test_new_names_exist(name: str):
    assert name not in RENAMED_TARGETS
    assert callable(get_object(name))


@pytest.mark.parametrize("old", [name for name in RENAMED_TARGETS if name.endswith(".COCOEvaluator")])
def test_load_config_renames(tmp_path: Path, old: str):
    cfg = model_zoo.get_config("dino/dino_r50.py")
    cfg.dataloader.evaluator["_target_"] = old
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, path)
    assert load_config(path, []).dataloader.evaluator["_target_"] == "detrx.evaluation.COCOEvaluator"
