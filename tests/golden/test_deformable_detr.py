"""Parity of the Deformable DETR variants with the published implementation, from converted weights."""

import pytest

from detrx import model_zoo
from detrx.checkpoint import convert_checkpoint
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, StubBackbone, variants

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
    cfg.postprocess.num_detections = sizes["select_box_nums_for_evaluation"]
    model = instantiate(cfg)
    model.load_state_dict(convert_checkpoint(golden.weights, model, "detrex")[0])
    return model


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
