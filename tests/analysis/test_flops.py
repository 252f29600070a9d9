import pytest
import torch

from detrx import model_zoo
from detrx.analysis import count_flops
from detrx.d2.config import instantiate


@pytest.fixture(scope="module")
def model():
    return instantiate(model_zoo.get_config("deformable_detr/deformable_detr_digits.py").model).eval()


def test_operators_of_detrx_are_counted(model):
    analysis = count_flops(model, torch.randn(2, 3, 64, 96))
    tokens = 2 * (8 * 12 + 4 * 6 + 2 * 3)
    queries, heads, points, channels = 2 * 50, 4, 3 * 4, 32
    # One encoder layer and three decoder layers, four corners for every point.
    assert analysis.by_operator()["ms_deform_attn_fused"] == (tokens + 3 * queries) * heads * points * 4 * channels
    # Scores and weighted sums of self-attention, three layers.
    attention = analysis.by_operator()["scaled_dot_product_attention"]
    assert attention == 3 * 2 * heads * 50 * 50 * (channels + channels)
    assert not [name for name in analysis.unsupported_ops() if name.startswith("detrx::")]


def test_linear_layers_are_counted_once_per_token(model):
    by_module = count_flops(model, torch.randn(1, 3, 64, 64)).by_module()
    tokens = 8 * 8 + 4 * 4 + 2 * 2
    assert by_module["model.encoder.layers.0.ffn.linear1"] == tokens * 128 * 256
    assert by_module["model"] == by_module[""]


def test_a_model_in_training_is_refused(model):
    with pytest.raises(ValueError, match="evaluation mode"):
        count_flops(model.train(), torch.randn(1, 3, 64, 64))
    model.eval()
