"""Parity of H-DETR with the published implementation, from converted weights."""

import pytest
import torch

from detrx.modeling import DetectionTransformer
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, assert_near, variants
from tests.golden.multi_scale import config, load


def build(golden: Golden) -> DetectionTransformer:
    sizes = golden.sizes
    cfg = config(golden, "h_detr/h_deformable_detr_r50.py")
    cfg.query_source.num_queries = sizes["num_queries_one2one"]
    cfg.methods[0].num_queries = sizes["num_queries_one2many"]
    cfg.methods[0].copies = sizes["k_one2many"]
    cfg.methods[0].weight = sizes["lambda_one2many"]
    return load(golden, cfg)


@pytest.fixture(scope="module")
def goldens(golden_dir) -> list[Golden]:
    found = variants(golden_dir, "h_deformable_detr")
    assert found, f"no fixture of h_deformable_detr in {golden_dir}"
    return found


def test_inference(goldens):
    for golden in goldens:
        assert_inference(build(golden), golden)


@pytest.mark.parametrize("run", ["train", "train_empty", "train_none"])
def test_training(goldens, run: str):
    for golden in goldens:
        assert_training(build(golden), golden, run)


def test_without_the_branch_it_is_deformable_detr_plus_plus(goldens):
    for golden in goldens:
        model = build(golden)
        model.methods = torch.nn.ModuleList()
        assert_inference(model, golden)
        model.mask_padding = True
        losses = model.train()(golden.batch("normal"))
        assert len(losses) == 3 * (golden.sizes["dec_layers"] + 1)
        for name, value in losses.items():
            assert_near(value, golden.expected[f"train/loss/{name}"].reshape(()), 1e-4, name)
