"""Parity of the Deformable DETR variants with the published implementation, from converted weights."""

import pytest

from detrx.modeling import DetectionTransformer
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, assert_near, variants
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


@pytest.fixture(scope="module")
def hybrids(golden_dir) -> list[Golden]:
    found = variants(golden_dir, "h_deformable_detr")
    assert found, f"no fixture of h_deformable_detr in {golden_dir}"
    return found


def build_plus_plus(golden: Golden) -> DetectionTransformer:
    """Deformable-DETR++, which H-DETR is without its one-to-many queries: the last of the learned ones."""
    count = golden.sizes["num_queries_one2one"]
    cfg = config(golden, "deformable_detr/deformable_detr_plus_plus_r50.py")
    cfg.query_source.num_queries = count
    for supervision in cfg.criterion.supervisions:
        supervision.losses[0].weight = golden.meta["reference_config"]["weight_dict"]["loss_class"]
    weights = {**golden.weights, "query_embedding.weight": golden.weights["query_embedding.weight"][:count]}
    return load(golden, cfg, weights)


def test_plus_plus(hybrids):
    for golden in hybrids:
        model = build_plus_plus(golden)
        assert_inference(model, golden)
        model.mask_padding = True
        losses = model.train()(golden.batch("normal"))
        for name, value in losses.items():
            assert_near(value, golden.expected[f"train/loss/{name}"].reshape(()), 1e-4, name)
