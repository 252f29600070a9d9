"""Deformable DETR of Hugging Face transformers against ours, from converted weights."""

import pytest
import torch

from detrx import model_zoo
from detrx.checkpoint import convert_checkpoint
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer, TimmBackbone
from tests.parity.huggingface import (
    BACKBONE,
    BACKBONE_CHANNELS,
    NUM_CLASSES,
    assert_losses_equal,
    assert_predictions_equal,
    backbone_config,
    converted,
    random_batch,
    randomise,
    without_normalisation,
)

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers")

WIDTH, HEADS, POINTS, FFN, QUERIES, ENCODER_LAYERS, DECODER_LAYERS = 64, 4, 2, 96, 12, 2, 3
VARIANTS = {
    "one_stage": ("deformable_detr_r50.py", {}),
    "refine": ("deformable_detr_refine_r50.py", {"with_box_refine": True}),
    "two_stage": (
        "deformable_detr_two_stage_r50.py",
        {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": QUERIES},
    ),
}


def build_reference(**variant):
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone_config([2, 3, 4]),
        d_model=WIDTH,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        num_queries=QUERIES,
        num_labels=NUM_CLASSES,
        dropout=0.0,
        auxiliary_loss=True,
        class_cost=2,
        **variant,
    )
    return randomise(transformers.DeformableDetrForObjectDetection(config))


def build_ours(config_file: str) -> DetectionTransformer:
    cfg = without_normalisation(model_zoo.get_config(f"deformable_detr/{config_file}").model)
    features = ["res3", "res4", "res5"]
    cfg.backbone = L(TimmBackbone)(name=BACKBONE, out_features=features, frozen_batch_norm=True)
    cfg.neck.in_channels = [BACKBONE_CHANNELS[feature] for feature in features]
    cfg.tokenizer.embed_dim, cfg.tokenizer.position_embedding.num_feats = WIDTH, WIDTH // 2
    cfg.encoder.num_layers, cfg.decoder.num_layers = ENCODER_LAYERS, DECODER_LAYERS
    cfg.encoder.layer.self_attn.num_heads, cfg.encoder.layer.self_attn.num_points = HEADS, POINTS
    cfg.encoder.layer.ffn.hidden_dim, cfg.encoder.layer.dropout = FFN, 0.0
    cfg.decoder.heads.num_classes, cfg.query_source.num_queries = NUM_CLASSES, QUERIES
    cfg.decoder.inverse_sigmoid_eps = 1e-5
    return instantiate(cfg)


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    config_file, variant = VARIANTS[request.param]
    reference = build_reference(**variant)
    return reference, converted(reference, build_ours(config_file), tmp_path_factory.mktemp(request.param))


def test_names_of_both_releases(models):
    """Version 5 writes files with the names of version 4, and has others itself; it lists tied heads several times."""
    reference, ours = models
    state_dict = reference.state_dict()
    assert "model.encoder.layers.0.mlp.fc1.weight" in state_dict
    weights, _ = convert_checkpoint(state_dict, ours)
    expected = ours.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_predictions(models):
    assert_predictions_equal(*models, random_batch())


def test_losses(models):
    assert_losses_equal(*models, random_batch(), {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2})
