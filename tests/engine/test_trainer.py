"""The parts of the trainer, in this process."""

import math
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.d2.solver import get_default_optimizer_params
from detrx.engine import ConfigError, LRFactors, ModelEMA, NonFiniteError, Trainer, check_overrides, preserved_rng
from detrx.model_zoo import get_config


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.seen_type = None

    def forward(self, batch):
        images = torch.stack([sample["image"] for sample in batch])
        output = self.layer(images)
        self.seen_type = output.dtype
        return {"loss": (output.float()[:, 0] - images.sum(1)).square().mean()}


def batches(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count * size, 3, generator=generator)
    samples = [{"image": image, "image_id": i} for i, image in enumerate(images)]
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def train(data, steps, lr=0.1, **settings):
    torch.manual_seed(0)
    model = Regression()
    trainer = Trainer(model, data, torch.optim.SGD(model.parameters(), lr=lr), **settings)
    trainer.train(0, steps)
    return trainer


def weight(trainer):
    return trainer.model.layer.weight.detach()


def test_accumulated_batches_are_one_large_batch():
    small = train(batches(6, 2), 2, accumulate=3)
    large = train(batches(2, 6), 2)
    assert torch.allclose(weight(small), weight(large), atol=1e-6)
    for name in ("total_loss", "data_time"):
        assert name in small.storage.latest()
    loss = [t.storage.latest()["total_loss"][0] for t in (small, large)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-5)
    assert not torch.allclose(weight(small), weight(train(batches(6, 2), 2)), atol=1e-3)


def test_clipping_bounds_the_step_and_logs_the_norm():
    torch.manual_seed(0)
    before = Regression().state_dict()
    clipped = train(batches(1, 4), 1, lr=1.0, max_norm=0.25)
    step = torch.cat([(before[name] - value).flatten() for name, value in clipped.model.state_dict().items()])
    assert step.norm().item() == pytest.approx(0.25, rel=1e-3)
    free = train(batches(1, 4), 1, lr=1.0)
    step = torch.cat([(before[name] - value).flatten() for name, value in free.model.state_dict().items()])
    assert clipped.storage.latest()["grad_norm"][0] == pytest.approx(step.norm().item(), rel=1e-5)
    assert "grad_norm" not in free.storage.latest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    trainer = train(batches(20, 4), 20, amp_dtype=dtype, max_norm=10.0)
    assert trainer.model.seen_type == dtype
    assert weight(trainer).dtype == torch.float32
    full = train(batches(20, 4), 20, max_norm=10.0)
    assert full.model.seen_type == torch.float32
    assert torch.allclose(weight(trainer), weight(full), atol=0.1)
    assert bool(trainer.state_dict()["grad_scaler"]) == (dtype == torch.float16)
    norms = [value for value, _ in trainer.storage.history("grad_norm").values()]
    assert all(math.isfinite(norm) for norm in norms)
    assert (len(norms) < 20) == (dtype == torch.float16)  # its first steps overflow and are skipped


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_non_finite_loss_stops_before_the_step(max_norm):
    data = batches(3, 2)
    data[1][0]["image"][0] = math.nan
    torch.manual_seed(0)
    model = Regression()
    trainer = Trainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1), max_norm=max_norm)
    with pytest.raises(NonFiniteError, match=r"iteration 1: loss=nan; image ids of the batch: \[2, 3\]"):
        trainer.train(0, 3)
    assert weight(trainer).isfinite().all()
    assert not trainer.completed


def test_non_finite_gradient_is_an_error():
    class Root(Regression):
        def forward(self, batch):
            return {"loss": (self.layer.weight * 0).sum().sqrt()}  # 0, with an infinite derivative

    model = Root()
    trainer = Trainer(model, batches(1, 2), torch.optim.SGD(model.parameters(), lr=0.1), max_norm=1.0)
    with pytest.raises(NonFiniteError, match="gradient is nan in iteration 0"):
        trainer.train(0, 1)
    assert weight(trainer).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"), [({"accumulate": 0}, "train.accumulate"), ({"max_norm": 0}, "train.clip_grad.max_norm")]
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train([], 1, **settings)


class Averaged(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.tied = self.w
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def test_average_of_parameters_and_buffers():
    model = Averaged()
    ema = ModelEMA(model, decay=0.9)
    with torch.no_grad():
        model.w.fill_(1)
        model.mean.fill_(10)
        model.count.fill_(3)
    ema.update(model)
    ema.update(model)
    assert torch.allclose(ema.model.w, torch.full((2,), 1 - 0.9**2))  # once per update, though it has two names
    assert ema.model.mean.item() == pytest.approx(10 * (1 - 0.9**2))
    assert ema.model.count.item() == 3
    assert not ema.model.training
    assert not ema.model.w.requires_grad
    ema.reset(model)
    assert torch.equal(ema.model.w, model.w)


def test_warmup_of_the_average():
    model = Averaged()
    ema = ModelEMA(model, decay=0.9, warmup=2)
    with torch.no_grad():
        model.w.fill_(1)
    expected = 0.0
    for n in (1, 2, 3):
        ema.update(model)
        decay = 0.9 * (1 - math.exp(-n / 2))
        expected = decay * expected + (1 - decay)
    assert ema.model.w[0].item() == pytest.approx(expected, rel=1e-5)
    other = ModelEMA(Averaged(), decay=0.9, warmup=2)
    other.load_state_dict(ema.state_dict())
    for average in (ema, other):
        average.update(model)
    assert torch.equal(ema.model.w, other.model.w)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"decay": 0.9, "warmup": -1}])
def test_impossible_averages_are_refused(settings):
    with pytest.raises(ValueError, match="EMA"):
        ModelEMA(Averaged(), **settings)


def test_preserved_generators():
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()  # noqa: NPY002

    np.random.randn()  # noqa: NPY002 leaves a second normal number in the state
    with preserved_rng():
        first = draw()
    assert draw() == first


def test_lr_factors():
    factors = LRFactors({"backbone": 0.1, "sampling_offsets": 0.5})
    assert factors("backbone.conv.weight") == pytest.approx(0.1)
    assert factors("encoder.layers.0.sampling_offsets.bias") == pytest.approx(0.5)
    assert factors("my_backbone.sampling.weight") == 1


def test_overrides_name_similar_keys():
    cfg = OmegaConf.create(
        {
            "model": L(get_default_optimizer_params)(overrides={"a": 1}, base_lr="${train.lr}"),
            "train": {"lr": 0.1, "steps": [{"at": 1}, {"at": 2}]},
        },
        flags={"allow_objects": True},
    )
    check_overrides(cfg, ["model.weight_decay=1", "train.steps.1.at=3", "+train.new=1", "model.overrides={b: 2}"])
    for override, message in (
        ("model.weigth_decay=1", "did you mean model.weight_decay"),
        ("train.weight_decay=1", "did you mean model.weight_decay"),
        ("train.steps.2.at=3", r"did you mean train\.steps\.\d\.at"),
        ("train.nothing_like_it=3", r"unknown config key 'train\.nothing_like_it' \(\+"),
        ("--resume", "--resume must come before"),
        ("train.lr.x=3", r"unknown config key 'train\.lr\.x'"),
        ("train.lr=[", r"override 'train\.lr=\[': expected a number, and '\[' cannot be read as one$"),
        ("train.lr", "is not of the form key=value"),
        ("~train.lr", "cannot be removed"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_overrides(cfg, [override])


def test_coco_schedules():
    schedule = get_config("common/schedule.py")
    for epochs, drop in ((12, 11), (24, 20), (36, 30), (50, 40)):
        multiplier = instantiate(schedule[f"lr_multiplier_{epochs}ep"])
        assert multiplier(0) == 1
        assert multiplier((drop - 0.01) / epochs) == pytest.approx(1)
        assert multiplier(drop / epochs) == pytest.approx(0.1)
