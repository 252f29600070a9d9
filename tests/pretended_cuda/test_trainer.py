"""What a training does on a GPU around its model: when it waits, how batches get there, what a NaN leaves behind."""

import itertools
import multiprocessing

import pytest
import torch
from torch import Tensor

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.data import Prefetcher, build_test_loader, build_train_loader
from detrx.engine import EvaluationHook, ModelEMA, NonFiniteError, Trainer
from detrx.engine.optimizer import build_optimizer
from tests.engine.small_training import PERIOD, AfterStep, Data, make_trainer, saved, weights

from .budget import BUDGET, make_batch
from .harness import on_pretended_cuda, waits


@on_pretended_cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_waits_once_in_a_log_period(dtype, accumulate):
    trainer = make_trainer(Data(), amp_dtype=dtype, accumulate=accumulate)
    trainer._ema = ModelEMA(trainer.model, 0.9)
    pending = []
    trainer.register_hooks([AfterStep(lambda trainer: pending.append(trainer.num_pending))])
    with waits() as found:
        trainer.train(0, 10)
    assert found.count == 3, found  # after 4, 8 and 10 iterations
    assert pending == [1, 2, 3, 0, 1, 2, 3, 0, 1, 0]
    for name in ("total_loss", "loss_square", "loss_abs", "data_time"):
        assert [iteration for _, iteration in trainer.storage.history(name).values()] == list(range(10))
    norms = [iteration for _, iteration in trainer.storage.history("grad_norm").values()]
    assert set(norms) <= set(range(10)) and (norms == list(range(10)) or dtype == torch.float16)


@on_pretended_cuda
def test_losses_are_those_of_a_training_that_fetches_them_in_every_iteration():
    histories = []
    for period in (1, PERIOD):
        trainer = make_trainer(Data())
        trainer._log_period = period
        trainer.train(0, 10)
        histories.append({name: trainer.storage.history(name).values() for name in ("loss_abs", "grad_norm")})
    assert histories[0] == histories[1]


@on_pretended_cuda
def test_the_next_batch_is_asked_for_when_the_work_on_this_one_is_handed_out():
    data = Data()
    trainer = make_trainer(data)
    asked = []

    def forward(module, args):
        asked.append(("forward", data.asked))

    trainer.model.register_forward_pre_hook(forward)
    trainer.register_hooks([AfterStep(lambda trainer: asked.append(("done", data.asked)))])
    trainer.train(0, 3)
    assert asked == [("forward", 0), ("done", 1), ("forward", 1), ("done", 2), ("forward", 2), ("done", 2)]


@on_pretended_cuda
def test_prefetched_batches_have_everything_and_are_safe_to_use():
    data, note = Data(), object()

    def batches():
        for batch in itertools.islice(data, 3):
            yield [{**each, "note": note, "height": 7} for each in batch]

    prefetcher, recorded = Prefetcher(batches(), torch.device("cuda")), []
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: recorded.append((id(tensor), stream)))
    for index in range(3):
        if index:
            prefetcher.prefetch()
        with waits() as found:
            batch = next(prefetcher)
        assert found.count == 0, found
        used = {id(tensor) for each in batch for tensor in tensors_of(each)}
        assert len(used) == 6 and used == {tensor for tensor, _ in recorded[6 * index :]}
        for image, each in enumerate(batch):
            expected = data.sample(index, image)
            assert each["note"] is note and each["height"] == 7 and each["image_id"] == expected["image_id"]
            assert each["instances"].image_size == (2, 2)
            assert torch.equal(each["image"].cpu(), expected["image"])  # DeviceError if no one had waited for the copy
            assert torch.equal(each["instances"].gt_boxes.tensor.cpu(), expected["instances"].gt_boxes.tensor)
            assert each["instances"].gt_classes.tolist() == [0, 1, 2]
    monkeypatch.undo()
    assert {stream for _, stream in recorded} == {torch.cuda.current_stream()}
    prefetcher.prefetch()
    with pytest.raises(StopIteration):
        next(prefetcher)


def tensors_of(each: dict) -> list[Tensor]:
    return [each["image"], each["instances"].gt_boxes.tensor, each["instances"].gt_classes]


@on_pretended_cuda
def test_an_error_of_the_loader_belongs_to_the_iteration_that_needs_the_batch():
    def broken():
        yield from itertools.islice(Data(), 3)
        raise ValueError("image 7.png does not exist")

    trainer = make_trainer(broken())
    with pytest.raises(ValueError, match=r"7\.png"):
        trainer.train(0, 10)
    assert trainer.iter == 3
    assert [iteration for _, iteration in trainer.storage.history("loss_abs").values()] == [0, 1, 2]


@on_pretended_cuda
@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_pin_what_is_copied(num_workers):
    multiprocessing.set_start_method("fork", force=True)  # this process was spawned, and would spawn its workers
    records = [{"width": 4, "height": 4, "index": index} for index in range(8)]
    arguments = {"num_workers": num_workers, "device": "cuda"}
    train = build_train_loader(records, mapped, 4, seed=0, **arguments)
    test = build_test_loader(records, mapped, batch_size=4, **arguments)
    for loader in (train, test):
        batch = next(iter(loader))
        assert type(batch) is list and len(batch) == 4
        for each in batch:
            assert each["image"].is_pinned() and each["instances"].gt_boxes.tensor.is_pinned()
            assert each["instances"].gt_classes.is_pinned() and not each["other"].is_pinned()
    assert not next(iter(build_train_loader(records, mapped, 4, seed=0)))[0]["image"].is_pinned()


def mapped(record: dict) -> dict:
    return {**Data().sample(record["index"], 0), "other": torch.ones(1)}


@on_pretended_cuda
@pytest.mark.parametrize("nan_at", [1, 3, 6])
def test_a_nan_is_found_within_the_period_and_nothing_after_it_is_saved(nan_at):
    trainer = make_trainer(Data(nan_at))
    before, states = [], []

    def observe(trainer):
        before.append(weights(trainer))
        if trainer.iter == 5:
            states.append(trainer.state_dict())

    trainer.register_hooks([AfterStep(observe)])
    message = rf"iteration {nan_at}: loss_square=nan, loss_abs=nan; image ids of the batch: \[{10 * nan_at}, "
    with pytest.raises(NonFiniteError, match=message):
        trainer.train(0, 8)
    noticed = {1: 3, 3: 3, 6: 7}[nan_at]
    assert trainer.iter == noticed and len(states) == (nan_at == 6)
    for skipped in range(nan_at, len(before)):
        assert all(each.isfinite().all() for each in before[skipped])
    if nan_at < noticed:
        pairs = zip(before[nan_at - 1], before[nan_at], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "the step is not skipped"
    history = trainer.storage.history("total_loss").values()
    assert [iteration for _, iteration in history] == list(range(nan_at))


@on_pretended_cuda
def test_a_checkpoint_looks_at_what_was_not_looked_at():
    trainer = make_trainer(Data(nan_at=1))
    with pytest.raises(NonFiniteError, match="iteration 1"):
        trainer.register_hooks([AfterStep(lambda trainer: trainer.iter == 1 and trainer.state_dict())])
        trainer.train(0, 8)
    assert trainer.iter == 1


@on_pretended_cuda
def test_an_evaluation_looks_at_what_was_not_looked_at():
    trainer, evaluated = make_trainer(Data(nan_at=2)), []

    def evaluate():
        evaluated.append((trainer.iter, trainer.num_pending))
        return {"bbox": {"AP": 1.0}}

    trainer.register_hooks([EvaluationHook(2, trainer.model, evaluate)])
    with pytest.raises(NonFiniteError, match="iteration 2"):
        trainer.train(0, 8)
    assert evaluated == [(1, 0)] and trainer.iter == 3


@on_pretended_cuda
def test_what_a_nan_breaks_later_is_explained_by_the_nan():
    """An optimizer that is not fused cannot skip the step: the weights are NaN, which a model may not survive."""

    def fail(module, args):
        if not module.layer.weight.isfinite().all():
            raise FloatingPointError("predictions are NaN")

    trainer = make_trainer(Data(nan_at=1), fused=False)
    trainer.model.register_forward_pre_hook(fail)
    with pytest.raises(NonFiniteError, match=r"iteration 1: .*image ids of the batch: \[10, 11\]"):
        trainer.train(0, 8)
    assert trainer.iter == 2


@on_pretended_cuda
@pytest.mark.parametrize("stop", [4, 6])
def test_a_resumed_training_has_the_same_losses(stop):
    whole = make_trainer(Data())
    state = []
    whole.register_hooks([AfterStep(lambda trainer: trainer.iter + 1 == stop and state.append(saved(trainer)))])
    whole.train(0, 10)
    resumed = make_trainer(Data())
    trainer_state, model_state = state[0]
    resumed.model.load_state_dict(model_state)
    resumed.load_state_dict(trainer_state)
    resumed.train(stop, 10)
    for name in ("loss_square", "grad_norm"):
        values = [trainer.storage.history(name).values() for trainer in (whole, resumed)]
        assert values[0] == values[1], "of all iterations: the state has those of the smoothing window"
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


@on_pretended_cuda
@pytest.mark.parametrize("name", ["deformable_detr/deformable_detr_digits.py", "qr_detr/qr_deformable_detr_digits.py"])
def test_training_a_detector_adds_one_wait_in_a_log_period(name):
    cfg = model_zoo.get_config(name)
    model, batch = instantiate(cfg.model).to("cuda"), make_batch(3, 1)
    optimizer = build_optimizer(cfg.optimizer, model)
    assert all(group["fused"] for group in optimizer.param_groups)
    ema = ModelEMA(model, 0.9)
    loader = itertools.repeat(batch)
    trainer = Trainer(model, loader, optimizer, max_norm=0.1, log_period=2, amp_dtype=torch.bfloat16, ema=ema)
    with waits() as found:
        trainer.train(0, 4)
    of_model, _ = BUDGET[name]
    assert found.count == 4 * of_model + 2, found
