"""Renaming of backbone weights; what it is for is in tests/modeling/test_backbone.py."""

import pytest
import torch

from detrx.checkpoint.backbones import split_backbone, to_timm

ONE = torch.ones(1)


def test_a_detector_is_split():
    detector = {"m.backbone.stem.conv1.weight": ONE, "m.backbone.res2.0.conv1.weight": ONE, "m.neck.weight": ONE}
    backbone, rest = split_backbone(detector)
    assert list(backbone) == ["stem.conv1.weight", "res2.0.conv1.weight"] and list(rest) == ["m.neck.weight"]
    with pytest.raises(ValueError, match=r"not part of the backbone 'm\.backbone\.': m\.neck\.weight"):
        to_timm(detector)


def test_unknown_names_stay():
    assert list(to_timm({"stages.0.blocks.0.gamma": ONE})) == ["stages.0.blocks.0.gamma"]
    named = to_timm({"x.res2.0.conv1.weight": ONE, "x.res2.0.conv1.norm.num_batches_tracked": ONE, "x.odd": ONE})
    assert list(named) == ["layer1.0.conv1.weight", "odd"]


def test_backbones_that_cannot_be_renamed():
    with pytest.raises(ValueError, match=r"several backbones: 'a\.', 'b\.'"):
        to_timm({"a.layer1.0.conv1.weight": ONE, "b.layer1.0.conv1.weight": ONE})
    with pytest.raises(ValueError, match=r"layers\.0\.blocks\.0\.attn\.qkv\.weight: no k, v among"):
        to_timm({"encoder.layers.0.blocks.0.attention.self.query.weight": ONE})
