"""Parity of Align-DETR with the published implementation, from converted weights."""

import copy

import pytest
import torch

from detrx.modeling import DetectionTransformer
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, variants
from tests.golden.multi_scale import config, load


def build(golden: Golden) -> DetectionTransformer:
    cfg = config(golden, "align_detr/align_detr_r50.py")
    cfg.decoder.position.padded_frame = True
    settings = golden.meta["reference_config"]
    cfg.methods[0].num_queries = golden.sizes["dn_number"]
    cfg.methods[0].label_noise = settings["label_noise_ratio"]
    cfg.methods[0].box_noise = settings["box_noise_scale"]
    # The published numbers of copies: of the encoder, then of every layer.
    encoder_copies, *copies = golden.sizes["match_num"]
    intermediate, last, encoder = cfg.criterion.supervisions
    by_layer = []
    for layer, count in enumerate(copies[:-1]):
        supervision = copy.deepcopy(intermediate)
        supervision.layers = (layer, layer + 1)
        supervision.assigner.copies = count
        by_layer.append(supervision)
    encoder.assigner.copies, last.assigner.copies = encoder_copies, copies[-1]
    last.assigner.max_share = intermediate.assigner.max_share
    cfg.criterion.supervisions = [*by_layer, last, encoder]
    for supervision in cfg.criterion.supervisions:
        supervision.assigner.carry_limit = True
        for loss in supervision.losses:
            if "pair_weight" in loss:
                loss.pair_weight.tau = golden.sizes["tau"]
    return load(golden, cfg)


@pytest.fixture(scope="module")
def goldens(golden_dir) -> list[Golden]:
    found = variants(golden_dir, "align_detr")
    assert found, f"no fixture of align_detr in {golden_dir}"
    return found


def test_inference(goldens):
    for golden in goldens:
        assert_inference(build(golden), golden)


@pytest.mark.parametrize("run", ["train_dn", "train_dn_empty", "train_dn_none"])
def test_training(goldens, run: str):
    for golden in goldens:
        assert_training(build(golden), golden, run)


@pytest.mark.parametrize("run", ["train", "train_empty", "train_none"])
def test_training_without_denoising(goldens, run: str):
    for golden in goldens:
        model = build(golden)
        model.methods = torch.nn.ModuleList()
        assert_training(model, golden, run)
