"""Parity of the Deformable DETR variants with the published implementation, from converted weights."""

import pytest

from detrx.modeling import DetectionTransformer
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, variants
from tests.golden.multi_scale import config, load

CONFIGS = {
    "deformable_detr": "deformable_detr/deformable_detr_r50.py",
    "deformable_detr_refine": "deformable_detr/deformable_detr_refine_r50.py",
    "deformable_detr_two_stage": "deformable_detr/deformable_detr_two_stage_r50.py",
}


def build(golden: Golden) -> DetectionTransformer:
    return load(golden, config(golden, CONFIGS[golden.sizes["model"]]))


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def goldens(request: pytest.FixtureRequest, golden_dir) -> list[Golden]:
    found = variants(golden_dir, request.param)
    assert found, f"no fixture of {request.param} in {golden_dir}"
    return found


def test_inference(goldens):
    for golden in goldens:
        assert_inference(build(golden), golden)


@pytest.mark.parametrize("run", ["train", "train_empty", "train_none"])
def test_training(goldens, run: str):
    for golden in goldens:
        assert_training(build(golden), golden, run)
