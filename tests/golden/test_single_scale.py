"""Parity of Conditional, DAB- and DN-DETR with the published implementation, from converted weights."""

import pytest

from detrx import model_zoo
from detrx.checkpoint import convert_checkpoint
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer
from tests.golden.compare import assert_inference, assert_training
from tests.golden.golden_fixture import Golden, StubBackbone, variants

RUNS = {
    "conditional_detr": ["train", "train_empty", "train_none"],
    "dab_detr": ["train", "train_empty", "train_none"],
    "dn_detr": ["train_dn", "train_dn_empty", "train_dn_none"],
}


def build(golden: Golden) -> DetectionTransformer:
    """The detector of the config with the sizes and weights of the fixture."""
    sizes, stages = golden.sizes, golden.meta["backbone_stub"]
    cfg = model_zoo.get_config("{0}/{0}_r50_50ep.py".format(sizes["model"])).model
    cfg.backbone = L(StubBackbone)(stages=stages)
    cfg.neck.in_channels = [stage["out_channels"] for stage in stages.values()]
    cfg.tokenizer.embed_dim = sizes["embed_dim"]
    cfg.tokenizer.position_embedding.num_feats = sizes["embed_dim"] // 2
    cfg.encoder.num_layers = sizes["enc_layers"]
    cfg.decoder.num_layers = sizes["dec_layers"]
    cfg.encoder.layer.self_attn.num_heads = sizes["num_heads"]
    cfg.encoder.layer.ffn.hidden_dim = sizes["feedforward_dim"]
    cfg.encoder.layer.dropout = 0.0
    cfg.decoder.heads.num_classes = sizes["num_classes"]
    # Published are a cross-attention to the padding too, and gradients of the centres that are meant to be frozen.
    cfg.decoder.layer.cross_attn.mask_padding = cfg.decoder.first_layer.cross_attn.mask_padding = False
    cfg.query_source.num_queries = sizes["num_queries"]
    if sizes["model"] != "conditional_detr":
        cfg.query_source.freeze_centres = False
        cfg.query_source.num_patterns = sizes.get("num_patterns", 0)
    if sizes["model"] == "dn_detr":
        cfg.methods[0].num_groups = sizes["denoising_groups"]
        cfg.methods[0].label_noise = sizes["label_noise_prob"]
        cfg.methods[0].box_noise = sizes["box_noise_scale"]
    cfg.postprocess.num_detections = sizes["select_box_nums_for_evaluation"]
    model = instantiate(cfg)
    model.load_state_dict(convert_checkpoint(golden.weights, model, "detrex")[0])
    return model


def goldens(golden_dir, name: str) -> list[Golden]:
    found = variants(golden_dir, name)
    assert found, f"no fixture of {name} in {golden_dir}"
    return found


@pytest.mark.parametrize("name", RUNS)
def test_inference(golden_dir, name: str):
    for golden in goldens(golden_dir, name):
        assert_inference(build(golden), golden)


@pytest.mark.parametrize("name, run", [(name, run) for name, runs in RUNS.items() for run in runs])
def test_training(golden_dir, name: str, run: str):
    for golden in goldens(golden_dir, name):
        assert_training(build(golden), golden, run)
