import json

import numpy as np
import pytest

from detrx.analysis import read_metrics
from detrx.analysis.metrics import SCALAR_GROUPS, smooth


@pytest.fixture
def write(tmp_path):
    def _write(*lines, tail=""):
        (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        return tmp_path

    return _write


def test_read(write):
    folder = write(
        {"iteration": 0, "total_loss": 3.0, "lr": 0.1, "note": "text"},
        {"iteration": 20, "total_loss": 2.0, "lr": 0.1},
        {"iteration": 20, "bbox/AP": 40.0},
    )
    run = read_metrics(folder)
    assert run.name == folder.name
    assert run.series["total_loss"][0].tolist() == [0, 20]
    assert run.series["total_loss"][1].tolist() == [3, 2]
    assert run.series["bbox/AP"][1].tolist() == [40]
    assert "note" not in run.series
    assert read_metrics(folder / "metrics.json", "mine").name == "mine"


def test_losses_of_a_kind_are_added_up(write):
    run = read_metrics(
        write({"iteration": 0, "loss_giou": 1.0, "loss_class": 2.0, "loss_class_0": 3.0, "loss_class_0_enc": 4.0})
    )
    kinds = run.loss_kinds()
    assert list(kinds) == ["class", "giou"]
    assert kinds["class"][1].tolist() == [9]
    assert kinds["giou"][1].tolist() == [1]


def test_a_resumed_run_overwrites_what_it_repeats(write):
    run = read_metrics(
        write({"iteration": 0, "lr": 1.0}, {"iteration": 20, "lr": 2.0}, {"iteration": 0, "lr": 3.0}), "a"
    )
    assert run.series["lr"][0].tolist() == [0, 20]
    assert run.series["lr"][1].tolist() == [3, 2]


def test_a_line_that_is_being_written_is_ignored_but_others_must_be_right(write):
    assert read_metrics(write({"iteration": 0, "lr": 1.0}, tail='{"iteration": 2')).series["lr"][0].tolist() == [0]
    with pytest.raises(ValueError, match=r"metrics\.json, line 1: expected a JSON object"):
        read_metrics(write({"lr": 1.0}, {"iteration": 0}))


def test_missing_and_empty(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json does not exist"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match="no metrics yet"):
        read_metrics(write())


def test_smooth():
    values = np.array([0.0, 3.0, 6.0, 0.0, 6.0])
    assert smooth(values, 3).tolist() == [0, 3, 3, 4, 6]
    assert smooth(values, 1).tolist() == values.tolist()
    assert smooth(np.full(7, 2.0), 5).tolist() == [2.0] * 7


def test_scalars_of_a_group(write):
    names = (
        "routing/passing",
        "routing/passing_10",
        "routing/passing_2",
        "routing/other",
        "moe/encoder_0_max_over_mean",
    )
    run = read_metrics(write({"iteration": 0, **dict.fromkeys(names, 1.0)}))
    experts, routers = (group.find(run) for group in (SCALAR_GROUPS[0], SCALAR_GROUPS[-1]))
    assert list(routers.items()) == [
        ("routing/passing", "mean"),
        ("routing/passing_2", "layer 2"),
        ("routing/passing_10", "layer 10"),
    ]
    assert experts == {"moe/encoder_0_max_over_mean": "encoder 0"}
