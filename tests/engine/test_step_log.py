"""Losses fetched for several iterations at once, in this process; `test_script` has two processes."""

import math

import pytest
import torch
from torch import nn

from detrx.d2.engine import HookBase
from detrx.d2.utils import EventStorage
from detrx.engine import IterationTimer, NonFiniteError, Trainer, hooks
from detrx.engine.step_log import StepLog

NAMES = ("loss_a", "loss_b")


def batches(*ids):
    return [[{"image_id": each} for each in batch] for batch in ids]


def filled(*losses, norms=None, overflow_is_normal=False):
    """A log of steps with losses ((batches, 2) each) and norms, of images 10 * iteration + batch."""
    log = StepLog(overflow_is_normal)
    for iteration, values in enumerate(losses):
        norm = None if norms is None else torch.tensor(norms[iteration])
        ids = [[10 * iteration + batch] for batch in range(len(values))]
        log.add(iteration, NAMES, torch.tensor(values), norm, 0.5 * iteration, batches(*ids))
    return log


def history(storage, name):
    return [(value, iteration) for value, iteration in storage.history(name).values()]


def test_every_iteration_has_its_scalars():
    log, storage = filled([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], norms=[0.25, 0.75]), EventStorage(7)
    assert len(log) == 2
    assert log.fetch(storage, signal=15) == 15
    assert len(log) == 0
    assert history(storage, "loss_a") == [(1.0, 0), (4.0, 1)]
    assert history(storage, "loss_b") == [(2.0, 0), (5.0, 1)]
    assert history(storage, "total_loss") == [(3.0, 0), (9.0, 1)]
    assert history(storage, "grad_norm") == [(0.25, 0), (0.75, 1)]
    assert history(storage, "data_time") == history(storage, "rank_data_time") == [(0.0, 0), (0.5, 1)]
    assert log.fetch(storage) == 0
    assert len(history(storage, "loss_a")) == 2


def test_losses_may_differ_between_iterations_and_norms_may_be_missing():
    log, storage = StepLog(), EventStorage()
    log.add(3, ["loss"], torch.tensor([[2.0]]), None, 0.0, batches([1]))
    log.add(4, ["loss_a", "loss_b"], torch.tensor([[1.0, 2.0]]), None, 0.0, batches([2]))
    log.fetch(storage)
    assert storage.histories().keys() == {"total_loss", "loss_a", "loss_b", "data_time", "rank_data_time"}
    assert history(storage, "total_loss") == [(2.0, 3), (3.0, 4)]


def test_a_loss_that_is_not_finite_is_named_with_its_batch():
    log, storage = filled([[1.0, 2.0]], [[1.0, 2.0], [math.inf, 2.0]], [[1.0, math.nan]]), EventStorage()
    message = r"loss is not finite in iteration 1: loss_a=inf; image ids of the batches: \[11\]"
    with pytest.raises(NonFiniteError, match=message):
        log.fetch(storage)
    assert history(storage, "loss_a") == [(1.0, 0)], "what was before it is known"
    assert len(log) == 0


def test_a_gradient_that_is_not_finite_is_named_with_losses_and_all_images():
    losses, norms = [[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.5]]], [1.0, math.inf]
    message = (
        r"norm of the gradient is inf in iteration 1, with finite losses: loss_a=2, loss_b=3\.25; "
        r"image ids of the batches: \[10, 11\]"
    )
    for look in (lambda log: log.fetch(EventStorage()), StepLog.check):
        with pytest.raises(NonFiniteError, match=message):
            look(filled(*losses, norms=norms))
    log, storage = filled(*losses, norms=norms, overflow_is_normal=True), EventStorage()
    log.fetch(storage)
    assert history(storage, "grad_norm") == [(1.0, 0)]
    assert len(history(storage, "loss_a")) == 2


class Times(HookBase):
    """Lets steps take some seconds, and fetches after some."""

    def __init__(self, seconds, fetched_at):
        self.seconds, self.fetched_at, self.num_pending, self.now = seconds, fetched_at, 0, 100.0
        self.start_iter = self.iter = 0
        self.storage = EventStorage()

    def run(self, timer):
        timer.trainer = self
        timer.before_train()
        for iteration, seconds in enumerate(self.seconds):
            self.iter = iteration
            timer.before_step()
            self.now += seconds
            self.num_pending = 0 if self.iter in self.fetched_at else self.num_pending + 1
            timer.after_step()
            self.now += 1.0  # other hooks
        timer.after_train()
        return history(self.storage, "time")


@pytest.mark.parametrize(
    ("fetched_at", "times"),
    [
        (range(6), [(2.0, 1), (4.0, 2), (6.0, 3), (1.0, 4), (2.0, 5)]),
        ((3, 5), [(4.0, 1), (4.0, 2), (4.0, 3), (1.5, 4), (1.5, 5)]),
        ((3,), [(4.0, 1), (4.0, 2), (4.0, 3)]),
    ],
)
def test_iterations_that_are_fetched_together_have_the_mean_of_their_durations(monkeypatch, caplog, fetched_at, times):
    training = Times([9.0, 2.0, 4.0, 6.0, 1.0, 2.0], fetched_at)
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: training.now)
    caplog.set_level("INFO")
    timer = IterationTimer(warmup_iter=2)
    assert training.run(timer) == times
    assert f"{len(times)} iterations" in caplog.text


class Two(nn.Module):
    """w * x and w ** 2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss_a": self.w[0] * batch[0]["x"], "loss_b": self.w[0] ** 2}


def test_on_a_cpu_every_iteration_is_looked_at():
    model = Two()
    data = [[{"x": x, "image_id": i}] for i, x in enumerate((1.0, 2.0, math.nan, 1.0))]
    trainer = Trainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1), log_period=20)
    with pytest.raises(NonFiniteError, match=r"iteration 2: loss_a=nan; image ids of the batch: \[2\]"):
        trainer.train(0, 4)
    assert trainer.iter == 2
    assert model.w.isfinite()


def test_predictions_that_are_not_finite_are_named_with_the_iteration():
    class Model(Two):
        def forward(self, batch):
            if batch[0]["x"] == 2:
                raise FloatingPointError("predictions are NaN for image ids [7]")
            return super().forward(batch)

    model = Model()
    data = [[{"x": x, "image_id": i}] for i, x in enumerate((1.0, 2.0))]
    trainer = Trainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteError, match=r"iteration 1: predictions are NaN for image ids \[7\]"):
        trainer.train(0, 2)


def test_impossible_period_is_refused():
    model = Two()
    with pytest.raises(ValueError, match=r"train\.log_period must be 1 or more iterations, got 0"):
        Trainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1), log_period=0)
