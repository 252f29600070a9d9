"""Schedules and parameter groups, against numbers from Detectron2."""

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn

from detrx.d2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params


def optimizer_with_two_rates():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (2.0, 0.5)]
    return torch.optim.SGD(groups, lr=1.0)


def rates(multiplier, max_iter=10, first=0, optimizer=None):
    optimizer = optimizer or optimizer_with_two_rates()
    scheduler = LRMultiplier(optimizer, multiplier, max_iter, last_iter=first - 1)
    sequence = []
    for _ in range(first, max_iter):
        sequence.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return sequence, optimizer


MULTI_STEP = MultiStepParamScheduler([1, 0.1, 0.01], milestones=[5, 8], num_updates=10)
COSINE = CosineParamScheduler(1, 0)
SEQUENCES = [
    (WarmupParamScheduler(MULTI_STEP, 0.1, 0.3), [0.2, 0.8, 1.4, 2, 2, 0.2, 0.2, 0.2, 0.02, 0.02]),
    (
        WarmupParamScheduler(COSINE, 0.001, 0.2),
        [0.002, 0.905508, 1.809017, 1.587785, 1.309017, 1.0, 0.690983, 0.412215, 0.190983, 0.048943],
    ),
    (
        WarmupParamScheduler(COSINE, 0.001, 0.2, "constant", rescale_interval=True),
        [0.002, 0.002, 2.0, 1.92388, 1.707107, 1.382683, 1.0, 0.617317, 0.292893, 0.07612],
    ),
    (WarmupParamScheduler(MULTI_STEP, 0.001, 0.0), [2, 2, 2, 2, 2, 0.2, 0.2, 0.2, 0.02, 0.02]),
]


@pytest.mark.parametrize(("multiplier", "expected"), SEQUENCES)
def test_rates_of_all_groups_follow_the_schedule(multiplier, expected):
    sequence, _ = rates(multiplier)
    assert [first for first, _ in sequence] == pytest.approx(expected, abs=1e-6)
    assert [second for _, second in sequence] == pytest.approx([value / 4 for value in expected], abs=1e-6)


def test_schedule_continues_from_the_state_of_the_optimizer():
    multiplier = SEQUENCES[1][0]
    whole, _ = rates(multiplier)
    optimizer = optimizer_with_two_rates()
    LRMultiplier(optimizer, multiplier, 10)
    again = optimizer_with_two_rates()
    again.load_state_dict(optimizer.state_dict())
    continued, _ = rates(multiplier, first=4, optimizer=again)
    assert continued == whole[4:]


def test_unknown_warmup_and_wrong_scheduler_are_refused():
    with pytest.raises(ValueError, match="warmup method"):
        WarmupParamScheduler(COSINE, 0.1, 0.1, "quadratic")
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(optimizer_with_two_rates(), lambda where: 1.0, 10)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.ln = nn.LayerNorm(2)
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 1)
        self.tied = self.head
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def named(groups, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [({k: v for k, v in g.items() if k != "params"}, [names[p] for p in g["params"]]) for g in groups]


def test_groups_with_every_setting():
    model = Model()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=0.5,
        lr_factor_func=lambda name: 0.1 if name.startswith("backbone") else 1.0,
        overrides={"weight": {"weight_decay": 0.3}},
    )
    assert named(groups, model) == [
        ({"lr": 0.1, "weight_decay": 0.3}, ["backbone.weight"]),
        ({"lr": 2.0, "weight_decay": 0.5}, ["backbone.bias", "norm.bias", "ln.bias", "head.bias"]),
        ({"lr": 1.0, "weight_decay": 0.3}, ["norm.weight", "ln.weight", "embed.weight", "head.weight"]),
    ]


def test_groups_by_norm_layers_only():
    model = Model()
    assert named(get_default_optimizer_params(model, weight_decay_norm=0.0), model) == [
        ({}, ["backbone.weight", "backbone.bias", "embed.weight", "head.weight", "head.bias"]),
        ({"weight_decay": 0.0}, ["norm.weight", "norm.bias", "ln.weight", "ln.bias"]),
    ]


@pytest.mark.parametrize("settings", [{"bias_lr_factor": 2.0}, {"lr_factor_func": len}])
def test_factors_need_a_base_rate(settings):
    with pytest.raises(ValueError, match="requires base_lr"):
        get_default_optimizer_params(Model(), **settings)
