"""Optimizers of configs: which implementation they take, and that it is nothing to a checkpoint."""

import copy
import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.d2.solver import get_default_optimizer_params
from detrx.engine import build_optimizer
from detrx.engine.optimizer import load_optimizer_state, step_if_finite
from detrx.errors import InvalidInputError
from detrx.model_zoo import get_config

PLAIN = {"fused": None}


def make_model(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1)).to(device)


def build(model, **settings):
    cfg = get_config("common/optim.py").AdamW
    for key, value in settings.items():
        cfg[key] = value
    return build_optimizer(cfg, model)


def steps(model, optimizer, count, scaler=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(16, 4, generator=generator)
        optimizer.zero_grad()
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def assert_close(a, b):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_fused_is_the_same_optimizer():
    models = [make_model(), make_model()]
    for model, settings in zip(models, ({}, PLAIN), strict=True):
        optimizer = build(model, lr=0.01, **settings)
        assert [group["fused"] for group in optimizer.param_groups] == [settings.get("fused", True)]
        steps(model, optimizer, 20)
    assert_close(*models)
    assert not torch.allclose(models[0][0].weight, make_model()[0].weight, atol=0.05)


@pytest.mark.parametrize("saved_fused", [True, False, None])
@pytest.mark.parametrize("loaded_fused", [True, None])
def test_a_state_is_continued_by_another_implementation(saved_fused, loaded_fused):
    whole = make_model()
    optimizer = build(whole, lr=0.01, fused=saved_fused)
    steps(whole, optimizer, 5)
    model = copy.deepcopy(whole)
    other = build(model, lr=0.01, fused=loaded_fused)
    load_optimizer_state(other, copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["fused"] == loaded_fused
    steps(whole, optimizer, 5, seed=1)
    # A loss scale makes the optimizer skip steps by itself if it is fused, and only then.
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
    steps(model, other, 5, scaler, seed=1)
    assert_close(whole, model)


def test_state_of_other_parameter_groups_is_refused():
    optimizer = build(make_model())
    state = build(nn.Linear(2, 2)).state_dict()
    with pytest.raises(ValueError, match="its parameter group 0 has 2 parameters, and that of this config 6"):
        load_optimizer_state(optimizer, state)
    state["param_groups"] *= 2
    with pytest.raises(ValueError, match="it has 2 parameter groups, and the optimizer of this config 1"):
        load_optimizer_state(optimizer, state)


SETTINGS = {
    torch.optim.AdamW: {
        "lr": (0.01, 0.5),
        "betas": ((0.9, 0.999), (0.5, 0.9)),
        "eps": (1e-8, 1e-3),
        "weight_decay": (0.0, 0.3),
        "amsgrad": (True, False),
        "maximize": (False, True),
    },
    torch.optim.SGD: {
        "lr": (0.001, 0.002),
        "momentum": (0.9, 0.1),
        "dampening": (0.0, 0.5),
        "nesterov": (False, True),
        "weight_decay": (0.0, 0.3),
    },
    torch.optim.RMSprop: {"alpha": (0.9, 0.5), "centered": (True, False), "momentum": (0.5, 0.1), "lr": (0.01, 0.1)},
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, settings in SETTINGS.items() for key in settings])
def test_a_changed_setting_counts_and_is_told(kind, key):
    settings = {name: before for name, (before, _) in SETTINGS[kind].items()}
    before, after = SETTINGS[kind][key]
    whole = make_model()
    optimizer = kind(whole.parameters(), **settings)
    steps(whole, optimizer, 5)
    model = copy.deepcopy(whole)
    other = kind(model.parameters(), **{**settings, key: after})
    changes = load_optimizer_state(other, copy.deepcopy(optimizer.state_dict()))
    assert changes == {key: {(before, after)}} and other.param_groups[0][key] == after
    optimizer.param_groups[0][key] = after
    steps(whole, optimizer, 5, seed=1)
    steps(model, other, 5, seed=1)
    assert_close(whole, model)


def test_a_scheduled_learning_rate_stays_where_it_is_unless_it_is_changed():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        steps(model, optimizer, 1)
        schedule.step()
    state = optimizer.state_dict()
    same, changed = (torch.optim.SGD(model.parameters(), lr=lr) for lr in (0.1, 0.2))
    assert load_optimizer_state(same, state) == {}
    assert (same.param_groups[0]["lr"], same.param_groups[0]["initial_lr"]) == (0.0125, 0.1)
    assert load_optimizer_state(changed, state) == {"lr": {(0.1, 0.2)}}
    assert (changed.param_groups[0]["lr"], changed.param_groups[0]["initial_lr"]) == (0.2, 0.2)


def test_states_follow_the_names_of_parameters_into_other_groups():
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, optimizer, 2)
    other_order = sorted(names, key=lambda name: (name.endswith("weight"), name))
    parameters = dict(model.named_parameters())
    groups = [{"params": [parameters[name] for name in part]} for part in (other_order[:2], other_order[2:])]
    other = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    assert load_optimizer_state(other, optimizer.state_dict(), other_order, names) == {}
    for name, parameter in parameters.items():
        assert torch.equal(other.state[parameter]["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"]), (
            name
        )
    with pytest.raises(ValueError, match=r"it has not trained 0\.extra, nor 0 other parameters"):
        load_optimizer_state(optimizer, optimizer.state_dict(), ["0.extra", *names[1:]], names)


def test_where_there_is_no_fused_implementation_there_is_another(caplog):
    model = make_model()
    unknown = L(torch.optim.NAdam)(params=L(get_default_optimizer_params)(base_lr="${..lr}"), lr=0.01, fused=True)
    assert isinstance(build_optimizer(unknown, model), torch.optim.NAdam)
    assert "no argument 'fused'" in caplog.text
    caplog.clear()
    both = build(model, foreach=True)
    assert both.param_groups[0]["foreach"] and not both.param_groups[0]["fused"]
    assert "cannot be `True` together" in caplog.text
    caplog.clear()

    class OnOtherDevices(torch.optim.AdamW):
        def step(self, closure=None):
            if self.param_groups[0]["fused"]:
                raise RuntimeError("`fused=True` requires all the params to be on supported devices")
            return super().step(closure)

    cfg = get_config("common/optim.py").AdamW
    cfg["_target_"] = OnOtherDevices
    optimizer = build_optimizer(cfg, model)
    assert not optimizer.param_groups[0]["fused"] and optimizer.defaults["lr"] == cfg.lr
    assert "supported devices" in caplog.text
    steps(model, optimizer, 1)


def test_an_optimizer_without_fused_is_left_alone(caplog):
    cfg = OmegaConf.create({"o": L(torch.optim.SGD)(params=L(get_default_optimizer_params)(), lr=0.5)}).o
    optimizer = build_optimizer(cfg, make_model())
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["fused"] is None
    assert not caplog.records


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_fused_step_is_left_out_if_a_value_is_not_finite(bad):
    model = make_model()
    optimizer = build(model, lr=0.01)
    steps(model, optimizer, 2)
    before, count = copy.deepcopy(model), optimizer.state[model[0].weight]["step"].clone()
    state = copy.deepcopy(optimizer.state_dict()["state"])
    step_if_finite(optimizer, torch.tensor([1.0, bad]))
    assert_close(before, model)
    for index, each in optimizer.state_dict()["state"].items():
        assert all(torch.equal(each[key], state[index][key]) for key in each)
    step_if_finite(optimizer, torch.tensor([1.0, 2.0]))
    assert optimizer.state[model[0].weight]["step"] == count + 1
    assert not torch.equal(before[0].weight, model[0].weight)
    assert not hasattr(optimizer, "found_inf")


def test_a_step_that_is_not_fused_is_taken():
    model = make_model()
    optimizer = build(model, **PLAIN)
    steps(model, optimizer, 1)
    before = model[0].weight.detach().clone()
    step_if_finite(optimizer, torch.tensor([math.nan]))
    assert not torch.equal(before, model[0].weight)


def test_an_optimizer_without_parameters_is_refused():
    cfg = OmegaConf.create({"o": L(torch.optim.SGD)(lr=0.5)}).o
    with pytest.raises(InvalidInputError, match=r"optimizer\.params is missing"):
        build_optimizer(cfg, make_model())
