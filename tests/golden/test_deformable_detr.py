"""Parity of the Deformable DETR variants with the published implementation, from converted weights."""

import pytest
import torch

from detrx import model_zoo
from detrx.checkpoint import convert_detrex
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer
from tests.golden.golden_fixture import Golden, StubBackbone, assert_gradients, assert_near, variants

CONFIGS = {
    "deformable_detr": "deformable_detr/deformable_detr_r50.py",
    "deformable_detr_refine": "deformable_detr/deformable_detr_refine_r50.py",
    "deformable_detr_two_stage": "deformable_detr/deformable_detr_two_stage_r50.py",
}


def build(golden: Golden) -> DetectionTransformer:
    """The detector of the config with the sizes and weights of the fixture."""
    sizes, stages = golden.sizes, golden.meta["backbone_stub"]
    cfg = model_zoo.get_config(CONFIGS[sizes["model"]]).model
    cfg.backbone = L(StubBackbone)(stages=stages)
    cfg.neck.in_channels = [stage["out_channels"] for stage in stages.values()]
    cfg.tokenizer.embed_dim = sizes["embed_dim"]
    cfg.tokenizer.num_levels = sizes["num_feature_levels"]
    cfg.tokenizer.position_embedding.num_feats = sizes["embed_dim"] // 2
    cfg.encoder.num_layers = sizes["enc_layers"]
    cfg.decoder.num_layers = sizes["dec_layers"]
    cfg.encoder.layer.self_attn.num_heads = sizes["num_heads"]
    cfg.encoder.layer.self_attn.num_points = sizes["num_points"]
    cfg.encoder.layer.ffn.hidden_dim = sizes["feedforward_dim"]
    cfg.encoder.layer.dropout = 0.0
    cfg.decoder.heads.num_classes = sizes["num_classes"]
    cfg.query_source.num_queries = sizes["num_queries"]
    cfg.num_detections = sizes["select_box_nums_for_evaluation"]
    model = instantiate(cfg)
    model.load_state_dict(convert_detrex(golden.weights, model))
    return model


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def goldens(request: pytest.FixtureRequest, golden_dir) -> list[Golden]:
    found = variants(golden_dir, request.param)
    assert found, f"no fixture of {request.param} in {golden_dir}"
    return found


def predict(model: DetectionTransformer, batch: list[dict]):
    images = model.preprocess(batch)
    return model.predict(images.tensor, model.padding_mask(images))


def assert_predictions(predictions, expected: dict[str, torch.Tensor]) -> None:
    assert_near(predictions["main"].logits, expected["pred_logits"], 1e-4, "logits")
    assert_near(predictions["main"].boxes, expected["pred_boxes"], 1e-4, "boxes")
    if "enc/logits" in expected:
        assert_near(predictions["encoder"].logits[0], expected["enc/logits"], 1e-4, "encoder logits")
        assert_near(predictions["encoder"].boxes[0], expected["enc/boxes"], 1e-4, "encoder boxes")


@torch.no_grad()
def test_inference(goldens):
    for golden in goldens:
        model = build(golden).eval()
        # The published code ignores padding at inference.
        model.mask_padding = False
        assert_predictions(predict(model, golden.batch()), golden.below("eval/"))
        for index, result in enumerate(model(golden.batch())):
            found, expected = result["instances"], golden.below(f"eval/det/{index}/")
            assert_near(found.pred_boxes.tensor, expected["boxes"], 1e-4, "detected boxes")
            assert_near(found.scores, expected["scores"], 1e-4, "scores")
            assert torch.equal(found.pred_classes, expected["classes"])


@pytest.mark.parametrize("run", ["train", "train_empty", "train_none"])
def test_training(goldens, run: str):
    for golden in goldens:
        model = build(golden).train()
        expected = golden.below(f"{run}/")
        ground_truth = run.removeprefix("train").removeprefix("_") or "normal"
        batch = golden.batch(ground_truth)
        predictions = predict(model, batch)
        if run == "train":
            assert_predictions(predictions, expected)
        assert_matches(model, predictions, golden, run)

        losses = model(batch)
        assert {f"loss/{name}" for name in losses} == {name for name in expected if name.startswith("loss/")}
        for name, value in losses.items():
            assert_near(value, expected[f"loss/{name}"], 1e-4, name)
        total = sum(losses.values())
        assert_near(total, expected["loss_total"], 1e-4, "total loss")
        total.backward()
        if run == "train":
            assert_gradients(golden, model, run)


def assert_matches(model: DetectionTransformer, predictions, golden: Golden, run: str) -> None:
    ground_truth = run.removeprefix("train").removeprefix("_") or "normal"
    targets = golden.targets(ground_truth)
    assignments = model.criterion.assign(predictions, targets)
    for supervision, pairs in zip(model.criterion.supervisions, assignments, strict=True):
        num_layers = len(predictions[supervision.group].logits)
        for layer in range(num_layers):
            aux = "final" if layer == num_layers - 1 else f"aux_{layer}"
            tag = "enc" if supervision.group == "encoder" else aux
            for image in range(len(targets.counts)):
                here = (pairs.layer == layer) & (pairs.image == image)
                expected = golden.below(f"{run}/match/{tag}/{image}/")
                assert dict(zip(pairs.query[here].tolist(), pairs.truth[here].tolist(), strict=True)) == dict(
                    zip(expected["src"].tolist(), expected["tgt"].tolist(), strict=True)
                ), f"matches of {tag}, image {image}"
