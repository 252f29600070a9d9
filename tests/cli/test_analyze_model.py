import json

import pytest
import torch

from detrx.cli import analyze_model as tool
from detrx.engine import load_config
from detrx.engine.trained import build_model
from detrx.model_zoo import config_root
from tests.coco.registered import coco, registering, write_images

CONFIG = str(config_root() / "deformable_detr/deformable_detr_digits.py")


def test_figures_and_table(tmp_path, capsys):
    file = tmp_path / "new" / "cost.json"
    command = ["--config-file", CONFIG, "--size", "64", "64", "--rounds", "1", "--device", "cpu"]
    tool.main([*command, "--training-batch", "2", "--json", str(file), "model.query_source.num_queries=20"])
    cost = json.loads(file.read_text())
    assert cost["parameters"] == sum(part["parameters"] for part in cost["parts"].values())
    assert cost["flops"] >= cost["parts"]["backbone"]["flops"] > 0 and cost["ms_per_image"] > 0
    assert 2**16 < cost["inference_bytes"] < cost["training_bytes"]
    assert cost["training_bytes"] > 4 * cost["parameters"] and cost["training_batch"] == 2
    printed = capsys.readouterr().out
    assert f"{cost['inference_bytes'] / 2**20:.1f} MiB of activations at the peak of inference" in printed
    assert f"{cost['training_bytes'] / 2**20:.1f} MiB at the peak of a training step of 2 such images" in printed


def test_given_weights_on_real_images(tmp_path):
    """More images are asked for than there are."""
    write_images(tmp_path, [1])
    with registering(tmp_path) as add:
        overrides = [f"dataloader.test.dataset.names={add('cost_val', coco([1], [], {1: 'zero'}))}"]
        weights = tmp_path / "model.pth"
        command = ["--config-file", CONFIG, "--weights", str(weights), "--images", "5", "--device", "cpu"]
        command += ["--json", str(tmp_path / "cost.json"), *overrides]
        with pytest.raises(SystemExit, match=r"error: checkpoint .*model\.pth does not exist"):
            tool.main(command)
        torch.save({"model": build_model(load_config(CONFIG, overrides), "cpu").state_dict()}, weights)
        tool.main(command)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["images"] == 1 and cost["size"] is None and cost["weights"] == str(weights) and cost["flops"] > 0


def test_wrong_arguments(capsys):
    with pytest.raises(SystemExit, match=r"error: config file nowhere\.py does not exist"):
        tool.main(["--config-file", "nowhere.py"])
    with pytest.raises(SystemExit) as stop:
        tool.main(["--config-file", CONFIG, "--training-batch", "-1"])
    assert stop.value.code == 2 and "--training-batch: must be 0 or more, got -1" in capsys.readouterr().err
