"""Errors of the detrex converter; that its result is right is shown in tests/golden."""

import pytest
import torch

from detrx import model_zoo
from detrx.checkpoint import convert_detrex
from detrx.d2.config import instantiate


@pytest.fixture(scope="module")
def model():
    cfg = model_zoo.get_config("deformable_detr/deformable_detr_refine_r50.py").model
    cfg.backbone = None
    cfg.tokenizer.embed_dim, cfg.tokenizer.position_embedding.num_feats = 32, 16
    cfg.encoder.num_layers = cfg.decoder.num_layers = 1
    return instantiate(cfg)


def test_every_problem_is_listed(model):
    source = {
        "transformer.level_embeds": torch.zeros(4, 16),
        "class_embed.0.weight": torch.zeros(80, 32),
        "transformer.decoder.class_embed.0.weight": torch.ones(80, 32),
        "criterion.empty_weight": torch.zeros(1),
        "transformer.encoder.layers.7.norms.0.weight": torch.zeros(32),
    }
    with pytest.raises(ValueError) as error:
        convert_detrex(source, model)
    message = str(error.value)
    assert "criterion.empty_weight has no counterpart" in message
    assert "tokenizer.level_embed is (4, 16), the model has (4, 32)" in message
    assert "differs from another key for decoder.heads.class_heads.0.weight" in message
    assert "encoder.layers.7.norm1.weight (renamed) is not in the model" in message
    assert "decoder.layers.0.norm3.weight is not in the checkpoint" in message
