"""Multi-scale detectors with the sizes and weights of a fixture."""

from collections.abc import Mapping

from omegaconf import DictConfig
from torch import Tensor

from detrx import model_zoo
from detrx.checkpoint import convert_checkpoint
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer
from tests.golden.golden_fixture import Golden, StubBackbone


def config(golden: Golden, name: str) -> DictConfig:
    """The model of a config, with the sizes of the fixture."""
    sizes, stages = golden.sizes, golden.meta["backbone_stub"]
    cfg = model_zoo.get_config(name).model
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
    cfg.query_source.num_queries = sizes.get("num_queries", 0)
    cfg.postprocess.num_detections = sizes["select_box_nums_for_evaluation"]
    return cfg


def load(golden: Golden, cfg: DictConfig, weights: Mapping[str, Tensor] | None = None) -> DetectionTransformer:
    """The model of `cfg` with the weights of the fixture, or those given."""
    model = instantiate(cfg)
    model.load_state_dict(convert_checkpoint(golden.weights if weights is None else weights, model, "detrex")[0])
    return model
