"""The provider's checkpointer, and ours on top of it."""

import os

import pytest
import torch
from torch import nn

from detrx.checkpoint.checkpointer import AtomicCheckpointer, CheckpointError
from detrx.d2.checkpoint import DetectionCheckpointer


class Counter:
    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def model(width=3):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


@pytest.fixture(params=[DetectionCheckpointer, AtomicCheckpointer])
def checkpointer_class(request):
    return request.param


def test_save_and_resume(checkpointer_class, tmp_path):
    saved, counter = model(), Counter(5)
    checkpointer = checkpointer_class(saved, str(tmp_path), counter=counter)
    assert not checkpointer.has_checkpoint()
    checkpointer.save("a", iteration=1)
    checkpointer.save("b", iteration=2)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "b.pth")

    loaded, other = model(), Counter()
    rest = checkpointer_class(loaded, str(tmp_path), counter=other).resume_or_load("", resume=True)
    assert rest["iteration"] == 2
    assert other.value == 5
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), saved.state_dict().values(), strict=True)
    )


def test_initial_weights_leave_the_rest_alone(checkpointer_class, tmp_path):
    checkpointer_class(model(), str(tmp_path), counter=Counter(5)).save("a")
    loaded, counter = model(), Counter()
    checkpointer_class(loaded, str(tmp_path / "new"), counter=counter).resume_or_load(str(tmp_path / "a.pth"))
    assert counter.value == 0
    bare = tmp_path / "bare.pth"
    torch.save({f"module.{key}": value for key, value in model().state_dict().items()}, bare)
    checkpointer_class(loaded).load(str(bare))
    assert torch.equal(loaded[0].weight, torch.load(bare, weights_only=True)["module.0.weight"])


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    checkpointer = AtomicCheckpointer(model(), str(tmp_path))
    checkpointer.save("a", iteration=1)
    with pytest.raises(AttributeError):
        checkpointer.save("a", iteration=lambda: 2)  # cannot be pickled
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "last_checkpoint"]
    assert checkpointer.load(str(tmp_path / "a.pth"))["iteration"] == 1


def test_leftover_of_a_killed_process_is_removed(tmp_path):
    leftover = tmp_path / ".model_0000001.pth.0123456789ab.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))  # long ago
    checkpointer = AtomicCheckpointer(model(), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    checkpointer.save("a")
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "last_checkpoint"]


def test_best_model_is_not_what_is_resumed(tmp_path):
    AtomicCheckpointer(model(), str(tmp_path)).save("last")
    AtomicCheckpointer(model(), str(tmp_path), tag_last=False).save("best")
    assert AtomicCheckpointer(model(), str(tmp_path)).get_checkpoint_file().endswith("last.pth")


def test_exact_fit_is_demanded_when_strict(tmp_path):
    path = str(tmp_path / "a.pth")
    AtomicCheckpointer(model(), str(tmp_path)).save("a")
    with pytest.raises(CheckpointError, match=r"6 of another shape \(0\.bias \(3,\) instead of \(4,\)"):
        AtomicCheckpointer(model(4)).load(path, strict=True)
    larger = nn.Sequential(*model(), nn.Linear(3, 1))
    with pytest.raises(CheckpointError, match=r"a\.pth is from another model: 2 missing \(2\.bias, 2\.weight\)"):
        AtomicCheckpointer(larger).load(path, strict=True)
    with pytest.raises(CheckpointError, match=r"5 unexpected"):
        AtomicCheckpointer(nn.Sequential(nn.Linear(2, 3), nn.ReLU())).load(path, strict=True)


def test_partial_fit_is_a_warning_that_lists_everything(tmp_path, caplog):
    AtomicCheckpointer(model(), str(tmp_path)).save("a")
    larger = nn.Sequential(*model(), *(nn.Linear(3, 3) for _ in range(4)))
    AtomicCheckpointer(larger).load(str(tmp_path / "a.pth"))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert all(f"{i}.weight" in record.getMessage() for i in range(2, 6))


def test_nothing_in_common_is_an_error(tmp_path):
    AtomicCheckpointer(model(), str(tmp_path)).save("a")
    with pytest.raises(CheckpointError, match="from another model"):
        AtomicCheckpointer(nn.Conv2d(1, 1, 1)).load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", "truncated", "tensor", "no model"])
def test_damaged_file_is_named(tmp_path, damage):
    checkpointer = AtomicCheckpointer(model(), str(tmp_path))
    checkpointer.save("good")
    checkpointer.save("bad")
    path = tmp_path / "bad.pth"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "tensor":
        torch.save(torch.zeros(3), path)
    elif damage == "no model":
        torch.save({"model": "resnet"}, path)
    else:
        path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        checkpointer.resume()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "created"),))

    torch.save({"model": {}, "x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth holds an object of type .*mkdir, and reading it can run"):
        AtomicCheckpointer(model()).load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "created").exists()


def test_missing_file_is_named_with_those_that_are_there(tmp_path):
    checkpointer = AtomicCheckpointer(model(), str(tmp_path))
    checkpointer.save("a")
    checkpointer.tag_last_checkpoint("gone.pth")
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist; .* has a\.pth"):
        checkpointer.resume()


def test_resume_needs_a_training_state(tmp_path):
    AtomicCheckpointer(model(), str(tmp_path)).save("a")
    with pytest.raises(CheckpointError, match=r"a\.pth has no training state"):
        AtomicCheckpointer(model(), str(tmp_path), trainer=Counter()).resume()


def test_averaged_weights_are_preferred_if_asked_for(tmp_path):
    plain, averaged = model(), model()

    class Averaged(Counter):
        def state_dict(self):
            return {"model": averaged.state_dict()}

    AtomicCheckpointer(plain, str(tmp_path), ema=Averaged()).save("a")
    for prefer, expected in ((True, averaged), (False, plain)):
        loaded = model()
        AtomicCheckpointer(loaded, prefer_ema=prefer).load(str(tmp_path / "a.pth"), strict=True)
        assert torch.equal(loaded[0].weight, expected[0].weight)
