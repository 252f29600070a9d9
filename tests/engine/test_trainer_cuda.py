"""A training on a GPU: what `tests/pretended_cuda/test_trainer.py` says of a pretended one, for `make gpu-check`."""

import warnings

import pytest
import torch
from small_training import AfterStep, Data, make_trainer, saved, weights

from detrx.data import Prefetcher
from detrx.engine import NonFiniteError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_training_waits_once_in_a_log_period(dtype):
    make_trainer(Data(), amp_dtype=dtype).train(0, 2)  # libraries are loaded
    trainer = make_trainer(Data(), amp_dtype=dtype)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train(0, 10)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{each.filename}:{each.lineno}" for each in found if "synchronizing" in str(each.message)]
    assert len(places) == 3, places  # after 4, 8 and 10 iterations


def test_prefetched_batches_are_complete_while_the_gpu_is_busy():
    work = torch.randn(4096, 4096, device="cuda")
    images = [torch.randint(256, (3, 800, 1333), dtype=torch.uint8) for _ in range(4)]
    expected = [image.long().sum().item() for image in images]
    loader = ([{"image": images[i % 4]}, {"image": images[(i + 1) % 4]}] for i in range(24))
    prefetcher, sums = Prefetcher(loader, torch.device("cuda")), []
    for batch in prefetcher:
        for _ in range(8):
            work = (work @ work).clamp(-1, 1)
        prefetcher.prefetch()
        sums += [each["image"].long().sum() for each in batch]
        del batch
    assert torch.stack(sums).tolist() == [expected[k % 4] for i in range(24) for k in (i, i + 1)]


@pytest.mark.parametrize("stop", [4, 6])
def test_a_resumed_training_has_the_same_losses(stop):
    whole, state = make_trainer(Data()), []
    whole.register_hooks([AfterStep(lambda trainer: trainer.iter + 1 == stop and state.append(saved(trainer)))])
    whole.train(0, 10)
    resumed = make_trainer(Data())
    trainer_state, model_state = state[0]
    resumed.model.load_state_dict(model_state)
    resumed.load_state_dict(trainer_state)
    resumed.train(stop, 10)
    assert resumed.storage.history("loss_square").values() == whole.storage.history("loss_square").values()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_the_step_of_a_nan_is_left_out_and_the_nan_found_within_the_period():
    trainer, steps = make_trainer(Data(nan_at=1)), []
    trainer.register_hooks([AfterStep(lambda trainer: steps.append(weights(trainer)))])
    with pytest.raises(NonFiniteError, match=r"iteration 1: loss_square=nan, .*image ids of the batch: \[10, 11\]"):
        trainer.train(0, 8)
    assert len(steps) == 3
    assert all(torch.equal(a, b) for a, b in zip(*steps[:2], strict=True))
