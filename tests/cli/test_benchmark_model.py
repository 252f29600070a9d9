"""The tool runs in every setting and writes what it measured; at these sizes the figures mean nothing."""

import json

import pytest
import torch

from detrx.analysis.benchmark import Setting, endless, settings
from detrx.analysis.timing import interleaved_times
from detrx.cli import benchmark_model as tool
from detrx.model_zoo import config_root
from tests.cli.demo_files import CONFIG as LOADER_CONFIG
from tests.cli.test_demo import dataset  # noqa: F401

PLUS_PLUS = str(config_root() / "deformable_detr/deformable_detr_digits.py")
DETR = str(config_root() / "detr/detr_digits.py")


def test_configs_are_compared_in_every_setting(tmp_path, capsys):
    file = tmp_path / "new" / "speed.json"
    command = ["--config-file", PLUS_PLUS, "--config-file", DETR, "--baseline", DETR, "--size", "64", "64"]
    command += ["--dtype", "float32", "--dtype", "bfloat16", "--batch-size", "2", "--rounds", "3", "--device", "cpu"]
    tool.main([*command, "--json", str(file), "model.postprocess.num_detections=5"])
    report = json.loads(file.read_text())
    assert report["torch"] == torch.__version__ and report["baseline"] == DETR
    rows = report["rows"]
    assert [(row["model"], row["dtype"]) for row in rows] == [
        (model, dtype) for dtype in ("float32", "bfloat16") for model in (PLUS_PLUS, DETR)
    ]
    for row in rows:
        times = sorted(row["times_ms"])
        assert len(times) == 3 and row["median_ms"] == pytest.approx(times[1])
        assert times[0] <= row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] <= times[2]
        assert row["images_per_s"] == pytest.approx(2000 / row["median_ms"])
    assert rows[0]["times_baseline"] == pytest.approx(rows[0]["median_ms"] / rows[1]["median_ms"])
    assert rows[1]["times_baseline"] == rows[3]["times_baseline"] == 1
    table = capsys.readouterr().out
    assert "deformable_detr_digits" in table and "bfloat16" in table and str(file) in table


def test_images_of_the_data_loader(tmp_path, dataset, weights):  # noqa: F811
    file = tmp_path / "speed.json"
    command = ["--config-file", LOADER_CONFIG, "--weights", weights, "--data-loader", "--batch-size", "2"]
    tool.main([*command, "--device", "cpu", "--rounds", "2", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["data_loader"] and row["size"] is None and row["batch_size"] == 2
    with pytest.raises(SystemExit, match="error: the dataset of the data loader has fewer images than 3"):
        tool.main([*command[:-1], "3", "--device", "cpu", "--rounds", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "other.py"], "--baseline must be one of the config files, got other.py"),
        (["--config-file", DETR], "the same file is given twice"),
        (["--weights", "a.pth", "--weights", "b.pth"], "2 checkpoints for 1 config files"),
        (["--rounds", "0"], "--rounds: must be 1 or more, got 0"),
        (["--compile", "off", "--compile", "fastest"], "torch has no backend fastest"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--config-file", DETR, *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_all_combinations_of_settings():
    found = settings([1, 2], [(8, 9)], ["float32"], [None, "inductor"], data_loader=True)
    sized = [Setting(n, (8, 9), "float32", compiler) for n in (1, 2) for compiler in (None, "inductor")]
    assert found == sized + [Setting(n, None, "float32", None) for n in (1, 2)]
    assert str(found[1]) == "1 x 8x9, float32, inductor" and str(found[-1]) == "2 x loader, float32, not compiled"


def test_functions_take_turns():
    order, ticks = [], []
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved_times(functions, 2, "cpu", tick=lambda: ticks.append(0))
    assert order == list("ababab") and len(ticks) == 6
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}
    interleaved_times(functions, 1, "cpu", warm_up=False)
    assert order == list("abababab")


def test_only_full_batches():
    batches = endless([[1, 2], [3]], 2)
    assert [next(batches) for _ in range(3)] == [[1, 2]] * 3
