"""The training loop, hooks and set-up of either provider."""

import os
import sys

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

from detrx.d2.checkpoint import DetectionCheckpointer
from detrx.d2.engine import (
    HookBase,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    hooks,
    launch,
)
from detrx.d2.utils import JSONWriter, comm


class Model(nn.Module):
    """Two losses, w * x and w ** 2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        return {"loss_a": self.w * batch, "loss_b": self.w**2}


class Trainer(TrainerBase):
    def __init__(self, values, lr):
        super().__init__()
        self.model = Model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.batches = iter(values)

    def run_step(self):
        losses = self.model(next(self.batches))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self.optimizer.step()
        self.storage.put_scalars(**{name: value.item() for name, value in losses.items()})


def trainer_on(values, lr=0.1):
    return Trainer(values, lr)


class Recorder(HookBase):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name in ("before_train", "after_train", "before_step", "after_backward", "after_step"):
            return lambda: self.calls.append((name, self.trainer.iter))
        return super().__getattribute__(name)


def test_steps_and_order_of_hooks():
    trainer, recorder = trainer_on([2.0, 3.0]), Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(0, 2)
    # w = 1 - .1 * (2 + 2 * 1) = .6; .6 - .1 * (3 + 2 * .6) = .18
    assert trainer.model.w.item() == pytest.approx(0.18)
    step = ["before_step", "after_backward", "after_step"]
    expected = [("before_train", 0), *((name, i) for i in range(2) for name in step), ("after_train", 2)]
    assert recorder.calls == expected
    values = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert values["loss_a"] == pytest.approx(1.8)
    assert values["loss_b"] == pytest.approx(0.36)


def test_failure_runs_after_train_and_is_raised():
    trainer, recorder = trainer_on([2.0]), Recorder()
    trainer.register_hooks([recorder])
    with pytest.raises(StopIteration):
        trainer.train(0, 2)
    assert recorder.calls[-1] == ("after_train", 1)


def test_state_holds_hooks():
    class Stateful(HookBase):
        value = 0

        def after_step(self):
            self.value += 1

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    hook = Stateful()
    trainer = trainer_on([1.0, 1.0])
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    other, other_hook = trainer_on([1.0]), Stateful()
    other.register_hooks([other_hook])
    other.load_state_dict(trainer.state_dict())
    assert other.iter == 2
    assert other_hook.value == 2


def test_lr_hook_steps_after_every_iteration_and_resumes():
    def train(start, stop, optimizer_state=None):
        trainer = trainer_on([0.0] * 10, lr=1.0)
        if optimizer_state:
            trainer.optimizer.load_state_dict(optimizer_state)
        trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))])
        rates = []
        trainer.register_hooks([after_each_step(lambda t: rates.append(t.storage.latest()["lr"][0]))])
        trainer.max_iter = 10
        trainer.train(start, stop)
        return rates, trainer

    # max_iter of the loop is the length of the schedule, so both parts run to the end
    whole, _ = train(0, 10)
    assert whole == pytest.approx([1 - i / 10 for i in range(10)])
    trainer = trainer_on([0.0] * 4, lr=1.0)
    trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))])
    trainer.train(0, 4)
    rest, _ = train(4, 10, trainer.optimizer.state_dict())
    assert rest == pytest.approx(whole[4:])


def after_each_step(function):
    class Hook(HookBase):
        def after_step(self):
            function(self.trainer)

    return Hook()


def test_rate_of_the_commonest_group_is_logged():
    def optimizer(sizes_and_rates):
        groups = [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for n, lr in sizes_and_rates]
        return torch.optim.SGD(groups, lr=1)

    best = hooks.LRScheduler.get_best_param_group_id
    assert best(optimizer([(1, 0.1), (3, 0.2), (2, 0.3)])) == 1
    assert best(optimizer([(1, 0.1), (1, 0.2), (1, 0.2)])) == 1


def test_evaluation_is_periodic_and_at_the_end():
    evaluated = []

    def evaluate():
        evaluated.append(trainer.iter)
        return {"bbox": {"AP": len(evaluated), "AP-small": 0.5}}

    trainer = trainer_on([1.0] * 6)
    trainer.register_hooks([hooks.EvalHook(2, evaluate)])
    trainer.train(0, 6)
    assert evaluated == [1, 3, 6]
    assert trainer.storage.latest()["bbox/AP"] == (3.0, 6)
    assert trainer.storage.latest()["bbox/AP-small"] == (0.5, 6)


def test_no_evaluation_after_a_failure():
    trainer = trainer_on([1.0])
    trainer.register_hooks([hooks.EvalHook(0, lambda: pytest.fail("evaluated"))])
    with pytest.raises(StopIteration):
        trainer.train(0, 6)


def test_results_that_are_no_numbers_are_refused():
    trainer = trainer_on([1.0])
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"bbox": {"AP": "high"}})])
    with pytest.raises(ValueError, match="AP: high"):
        trainer.train(0, 1)


@pytest.mark.parametrize(("mode", "best_iteration"), [("max", 3), ("min", 1)])
def test_best_checkpoint(tmp_path, mode, best_iteration):
    scores = iter([0.3, 0.7, float("nan"), 0.5])
    trainer = trainer_on([1.0] * 8)
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    evaluation = hooks.EvalHook(2, lambda: {"AP": next(scores)})
    trainer.register_hooks([evaluation, hooks.BestCheckpointer(2, checkpointer, "AP", mode)])
    trainer.train(0, 8)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == best_iteration


def test_periodic_writer(tmp_path):
    trainer = trainer_on([1.0] * 6)
    trainer.register_hooks([hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=4)])
    trainer.train(0, 6)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert ['"iteration": 3' in lines[0], '"iteration": 5' in lines[1]] == [True, True]
    assert '"loss_a": ' in lines[0]


class SaveAfterStep(HookBase):
    def __init__(self, checkpointer):
        self.checkpointer = checkpointer

    def after_step(self):
        self.checkpointer.save(f"step_{self.trainer.iter}")


def test_a_checkpoint_knows_the_iteration(tmp_path):
    trainer = trainer_on([1.0] * 6)
    trainer.register_hooks([SaveAfterStep(DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer))])
    trainer.train(0, 6)
    assert torch.load(tmp_path / "step_4.pth", weights_only=True)["trainer"]["iteration"] == 4


def test_arguments():
    parse = default_argument_parser().parse_args
    args = parse(["--config-file", "a.py", "--resume", "--num-gpus", "2", "train.max_iter=3", "model.x=1"])
    assert (args.config_file, args.resume, args.eval_only, args.num_gpus) == ("a.py", True, False, 2)
    assert (args.num_machines, args.machine_rank, args.opts) == (1, 0, ["train.max_iter=3", "model.x=1"])
    assert args.dist_url == parse([]).dist_url
    assert args.dist_url.startswith("tcp://127.0.0.1:")


def test_one_process_needs_no_group():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == ["x"] == comm.gather("x")
    assert isinstance(comm.shared_random_seed(), int)
    model = Model()
    assert create_ddp_model(model) is model
    called = []
    launch(called.append, 1, args=(7,))
    assert called == [7]


def _exchange(folder):
    """Run by two processes: every call of `comm`, and the average of gradients."""
    rank = comm.get_rank()
    torch.manual_seed(rank)
    model = create_ddp_model(Model(), device_ids=None)
    loss = sum(model(torch.tensor(float(rank))).values())
    loss.backward()
    result = {
        "size": comm.get_world_size(),
        "local": (comm.get_local_rank(), comm.get_local_size()),
        "all": comm.all_gather({"rank": rank}),
        "gathered": comm.gather(rank),
        "seed": comm.all_gather(comm.shared_random_seed()),
        "gradient": model.module.w.grad.item(),
    }
    comm.synchronize()
    torch.save(result, os.path.join(folder, f"{rank}.pt"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="launch wants a GPU each")
def test_two_processes(tmp_path, monkeypatch):
    # spawned processes import this file by name
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    import test_engine

    launch(test_engine._exchange, 2, dist_url="auto", args=(str(tmp_path),))
    del sys.modules["test_engine"]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, result in enumerate(results):
        assert result["size"] == 2
        assert result["local"] == (rank, 2)
        assert result["all"] == [{"rank": 0}, {"rank": 1}]
        assert result["gathered"] == ([0, 1] if rank == 0 else [])
        assert len(set(result["seed"])) == 1
        assert result["gradient"] == pytest.approx(2.5)  # mean of x, plus 2 * w
