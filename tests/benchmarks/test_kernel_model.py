"""The model of the kernels' times follows from its parts."""

from dataclasses import replace

import pytest


@pytest.fixture
def model(_benchmarks):
    import kernel_model

    return kernel_model


def test_the_slowest_part_binds(model):
    gpu = model.Gpu("G", hbm=1e12, l2=2e12, sms=100, clock=1e9)
    cost = model.Cost(hbm=3e6, l2=2e6, l1=1.28e6, reductions=1e6, instructions=1e5, launches=2, latency_us=1)
    parts = {"HBM": 3, "L2": 2, "L1": 0.1, "instructions": 0.25, "latency": 1}
    assert cost.microseconds(gpu) == pytest.approx(parts)
    assert cost.estimate(gpu) == model.Estimate(pytest.approx((3 + 2 * model.LAUNCH_US) / 1e3), "launches")
    assert (cost + cost).estimate(gpu).ms == pytest.approx(2 * cost.estimate(gpu).ms)
    larger = replace(cost, hbm=3e7)
    assert larger.estimate(gpu).bound == "HBM"
    assert model.total(cost, larger, gpu=gpu).ms == pytest.approx(cost.estimate(gpu).ms + larger.estimate(gpu).ms)


def test_gpus_by_name(model):
    assert model.gpu_named("NVIDIA H200").name == "H200"
    assert model.gpu_named("NVIDIA H100 80GB HBM3").name == "H100" == model.gpu_named("something else").name


def test_shared_corners(model):
    levels = ((20, 30), (10, 15))
    shares = [model.distinct_share(levels, tile) for tile in ((1, 1), (1, 4), (4, 4), (8, 8))]
    assert 1 >= shares[0] > shares[1] > shares[2] > shares[3] > 0
    spread = model.distinct_share(levels, (4, 4), spread=6.0)
    assert spread > shares[2]


@pytest.mark.parametrize("shape", ["encoder", "decoder300"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention(model, shape, dtype):
    h100, h200 = (model.attention_times("fused", shape, 2, dtype, gpu) for gpu in model.GPUS)
    larger = model.attention_times("fused", shape, 16, dtype, model.GPUS[0])
    for ours, theirs, more in zip(h100, h200, larger, strict=True):
        assert 0 < theirs.ms <= ours.ms < more.ms
    assert h100[0].ms < h100[1].ms
    call = model.Attention("fused", shape, 2, dtype, model.LEVELS)
    assert call.forward().hbm >= call.point_bytes + call.output_bytes


def test_the_other_operators(model):
    for gpu in model.GPUS:
        small, large = (model.moe_times(tokens, 8, 2, 256, "bfloat16", gpu) for tokens in (900, 28800))
        assert small.keys() == large.keys() == {"route", "dispatch", "combine"}
        assert 0 < small["route"].ms <= large["route"].ms  # both are bound by latency
        assert all(0 < small[key].ms < large[key].ms for key in ("dispatch", "combine"))
        assert (
            model.routing_times(1, 300, 256, "float32", gpu).ms < model.routing_times(16, 900, 256, "float32", gpu).ms
        )
