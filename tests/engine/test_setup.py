"""Set-up of a run, and comparing settings, in this process."""

import types

import pytest
import torch
from omegaconf import OmegaConf

from detrx.d2.config import LazyCall as L
from detrx.d2.config import LazyConfig
from detrx.engine.output_folder import last_set_aside, set_earlier_run_aside, write_config
from detrx.engine.settings import changed_settings, describe_changes, saved_config
from detrx.engine.setup import set_up
from detrx.errors import InvalidInputError


def config(folder, **settings):
    train = {"output_dir": str(folder), "init_checkpoint": "", "seed": 3, "cudnn_benchmark": False, **settings}
    return OmegaConf.create({"train": train}, flags={"allow_objects": True})


def test_set_up_seeds_and_logs(tmp_path):
    file = tmp_path / "größe.py"
    file.write_text("# größe", encoding="utf-8")
    args = types.SimpleNamespace(config_file=str(file), eval_only=False, resume=False)
    numbers = []
    for _ in range(2):
        set_up(config(tmp_path / "out"), args)
        numbers.append(torch.rand(1).item())
    assert numbers[0] == numbers[1]
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert "Command line arguments: " in log and "# größe" in log and "Environment:" in log


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    args = types.SimpleNamespace(config_file="", eval_only=False, resume=False)
    with pytest.raises(InvalidInputError, match="Not a directory"):
        set_up(config(tmp_path / "file" / "out"), args)


def test_changed_settings():
    before = OmegaConf.create({"a": 1, "b": {"c": [1, 2], "d": "${a}"}, "gone": 0, "l": [{"x": 1}]})
    after = OmegaConf.create({"a": 2, "b": {"c": (1, 2), "d": "${a}", "e": None}, "l": [{"x": 3}]})
    assert describe_changes(changed_settings(before, after)) == [
        "a: 1 -> 2",
        "gone: 0 -> (not set)",
        "l.0.x: 1 -> 3",
        "b.e: (not set) -> None",
    ]


def test_a_saved_config_is_the_one_that_was_saved(tmp_path):
    cfg = OmegaConf.create({"m": L(torch.nn.Linear)(in_features=3, sizes=(1, 2)), "x": "${m.in_features}"})
    path = str(tmp_path / "config.yaml")
    write_config(cfg, path)
    assert changed_settings(saved_config(path), cfg) == {}
    cfg.m = L(torch.nn.Bilinear)(in_features=3, sizes=(1, 2))
    assert list(changed_settings(saved_config(path), cfg)) == ["m._target_"]
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:nowhere.at_all []")
    assert saved_config(path) is None and saved_config(str(tmp_path / "none.yaml")) is None


def test_a_config_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_config(OmegaConf.create({"a": 1}), str(path))
    monkeypatch.setattr(LazyConfig, "save", staticmethod(lambda cfg, file: open(file, "w", encoding="utf-8").close()))
    write_config(OmegaConf.create({"a": 2}), str(path))
    assert path.read_text() == "{a: 1}\n" and list(tmp_path.iterdir()) == [path]


def test_only_the_files_of_a_run_are_set_aside(tmp_path):
    (tmp_path / "model_final.pth.notes").write_text("")
    (tmp_path / "config.yaml").write_text("")
    assert set_earlier_run_aside(str(tmp_path)) == ""
    for name in ("model_0000004.pth", "log.txt.rank1", "events.out.tfevents.1.x", "average.pth", "eval_config.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "inference").mkdir()
    (tmp_path / "previous-7").mkdir()
    aside = tmp_path / "previous-8"
    assert last_set_aside(str(tmp_path)) != str(aside)
    assert set_earlier_run_aside(str(tmp_path)) == last_set_aside(str(tmp_path)) == str(aside)
    moved = {"model_0000004.pth", "log.txt.rank1", "events.out.tfevents.1.x", "eval_config.yaml", "config.yaml"}
    assert {path.name for path in aside.iterdir()} == {*moved, "inference"}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("model_final.pth.notes", "average.pth", "previous-7", "previous-8")
    }
