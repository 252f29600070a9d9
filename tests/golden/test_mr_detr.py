"""Parity of Mr. DETR with the published implementation, from converted weights."""

import pytest
import torch

from detrx.modeling import DetectionTransformer, FocalLoss
from detrx.projects.mr_detr import MixedDetections, MrDETR
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, assert_near, variants
from tests.golden.multi_scale import config, load

CONFIGS = {name: f"mr_detr/{name}_r50.py" for name in ("mr_detr_deformable", "mr_detr_dino", "mr_detr_align")}
PLAIN = ["train", "train_empty", "train_none"]
DENOISING = ["train_dn", "train_dn_empty", "train_dn_none"]


def build(golden: Golden) -> DetectionTransformer:
    cfg = config(golden, CONFIGS[golden.sizes["model"]])
    settings = golden.meta["reference_config"]
    if "dn_number" in golden.sizes:
        cfg.methods[0].num_queries = golden.sizes["dn_number"]
        cfg.methods[0].label_noise = settings["dn_label_noise_ratio"]
        cfg.methods[0].box_noise = settings["dn_box_noise_scale"]
    for trained in (*cfg.criterion.supervisions, cfg.methods[-1]):
        if trained.get("losses"):
            option = "last_class_only" if trained.losses[0]._target_ is FocalLoss else "last_box_only"
            trained.losses[0][option] = True
    cfg.methods[-1].top_k = settings["one_to_many_assigner"]["max_k"]
    cfg.methods[-1].threshold = settings["one_to_many_assigner"]["threshold"]
    return load(golden, cfg)


def goldens(golden_dir, name: str) -> list[Golden]:
    found = variants(golden_dir, name)
    assert found, f"no fixture of {name} in {golden_dir}"
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_inference(golden_dir, name: str):
    for golden in goldens(golden_dir, name):
        assert_inference(build(golden), golden)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_inference_with_mixed_scores(golden_dir, name: str):
    for golden in goldens(golden_dir, name):
        model = build(golden).eval()
        model.mask_padding = False
        model.postprocess = MixedDetections(golden.sizes["select_box_nums_for_evaluation"])
        predictions = model.decode(model.encode(model.preprocess(golden.batch())))["main"]
        expected = golden.expected["eval/pred_logits_mixed"][-1].sigmoid()
        assert_near(model.postprocess.scores(predictions), expected, 1e-4, "mixed scores")
        for index, result in enumerate(model(golden.batch())):
            found, expected = result["instances"], golden.below(f"eval/det_mixed/{index}/")
            assert_near(found.pred_boxes.tensor, expected["boxes"], 1e-4, "detected boxes")
            assert_near(found.scores, expected["scores"], 1e-4, "scores")
            assert torch.equal(found.pred_classes, expected["classes"])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_detector_takes_the_weights_of_the_main_route(golden_dir, name: str):
    for golden in goldens(golden_dir, name):
        cfg = config(golden, CONFIGS[name])
        cfg.methods = []
        assert_inference(load(golden, cfg), golden)


@pytest.mark.parametrize("run", PLAIN)
@pytest.mark.parametrize("name", CONFIGS)
def test_training_without_denoising(golden_dir, name: str, run: str):
    for golden in goldens(golden_dir, name):
        model = build(golden)
        model.methods = torch.nn.ModuleList(method for method in model.methods if isinstance(method, MrDETR))
        assert_training(model, golden, run)


@pytest.mark.parametrize("run", DENOISING)
@pytest.mark.parametrize("name", ["mr_detr_dino", "mr_detr_align"])
def test_training_with_denoising(golden_dir, name: str, run: str):
    for golden in goldens(golden_dir, name):
        assert_training(build(golden), golden, run)
