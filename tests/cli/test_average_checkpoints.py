import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from detrx.checkpoint import average_checkpoints
from detrx.checkpoint.checkpointer import AtomicCheckpointer
from detrx.cli import average_checkpoints as tool


class Command:
    def __reduce__(self):
        return os.system, ("true",)


ROOT = Path(__file__).resolve().parents[2]


def weights(value, steps=1):
    return {
        "linear.weight": torch.full((2, 3), float(value)),
        "linear.bias": torch.full((2,), value, dtype=torch.float16),
        "steps": torch.tensor(steps),
    }


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of a training; `ema`: value of its averaged weights."""

    def _save(name, value, iteration=0, ema=None):
        content = {"model": weights(value, iteration), "iteration": iteration, "trainer": {"lr": [0.1]}}
        if ema is not None:
            content["ema"] = {"model": weights(ema, iteration), "updates": 3}
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return _save


def run(tmp_path, *arguments):
    output = tmp_path / "new" / "average.pth"
    tool.main([*map(str, arguments), "--output", str(output)])
    return torch.load(output, weights_only=True)["model"]


def test_uniform_and_weighted(save, tmp_path, capsys):
    files = [save(f"{k}.pth", value, k) for k, value in enumerate((1, 2, 6))]
    mean = run(tmp_path, *files)
    assert (mean["linear.weight"] == 3).all() and (mean["linear.bias"] == 3).all()
    assert [mean[name].dtype for name in mean] == [torch.float32, torch.float16, torch.int64]
    assert mean["steps"] == 2  # of the last
    printed = capsys.readouterr().out
    assert f"averaged: {files[1]}\n" in printed and f"3 tensors, 0.0 M numbers: {tmp_path}/new/average.pth" in printed
    assert (run(tmp_path, *files, "--factors", 1, 2, 1)["linear.weight"] == 2.75).all()
    assert (run(tmp_path, *files, "--factors", 3, 0, 0)["linear.weight"] == 1).all()


def test_sums_are_in_float64(tmp_path):
    for k, value in enumerate((1.0, 1e-8, 1e-8, -1.0)):
        save_file({"w": torch.tensor([value])}, tmp_path / f"{k}.safetensors")
    mean = average_checkpoints([tmp_path / f"{k}.safetensors" for k in range(4)])
    assert mean["w"].tolist() == pytest.approx([0.5e-8], rel=1e-6)  # 0 in float32


def test_averaged_weights_are_preferred_unless_told_otherwise(save, tmp_path):
    files = [save("a.pth", 1, ema=10), save("b.pth", 3, ema=30)]
    assert (run(tmp_path, *files)["linear.weight"] == 20).all()
    assert (run(tmp_path, *files, "--ema")["linear.weight"] == 20).all()
    assert (run(tmp_path, *files, "--no-ema")["linear.weight"] == 2).all()
    files.append(save("c.pth", 5))
    assert (run(tmp_path, *files, "--no-ema")["linear.weight"] == 3).all()
    with pytest.raises(SystemExit, match=r"error: checkpoint .*c\.pth has no averaged \(EMA\) weights, but others do;"):
        run(tmp_path, *files)
    with pytest.raises(SystemExit, match=r"error: checkpoint .*c\.pth has no averaged \(EMA\) weights; .*--no-ema"):
        run(tmp_path, files[2], "--ema")
    assert (run(tmp_path, files[2])["linear.weight"] == 5).all()


def test_last_checkpoints_of_a_run(save, tmp_path):
    for iteration in (99, 199, 299):
        save(f"model_{iteration:07d}.pth", iteration, iteration)
    save("model_best.pth", 1000, 199)
    assert (run(tmp_path, tmp_path, "--last", 2)["linear.weight"] == 249).all()
    save("model_final.pth", 349, 349)
    mean = run(tmp_path, tmp_path, "--last", 2)
    assert (mean["linear.weight"] == 324).all() and mean["steps"] == 349
    save("model_final.pth", 50, 50)  # of an earlier, shorter run: the oldest
    assert (run(tmp_path, tmp_path, "--last", 1)["linear.weight"] == 299).all()
    with pytest.raises(SystemExit, match=r"error: .* expected 5 or more checkpoints \(model_\*\.pth\), found 4"):
        run(tmp_path, tmp_path, "--last", 5)
    torch.save({"model": weights(1)}, tmp_path / "model_0000399.pth")
    with pytest.raises(SystemExit, match=r"model_0000399\.pth does not say which iteration it is from"):
        run(tmp_path, tmp_path, "--last", 2)


def test_the_output_is_an_initial_checkpoint(tmp_path):
    model = nn.BatchNorm2d(3)
    states = []
    for k in range(2):
        model(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(k)))
        nn.init.constant_(model.weight, k)
        AtomicCheckpointer(model, str(tmp_path)).save(f"model_{k}", iteration=k)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for suffix in ("pth", "safetensors"):
        output = tmp_path / f"average.{suffix}"
        tool.main([str(tmp_path), "--last", "2", "--output", str(output)])
        loaded = nn.BatchNorm2d(3)
        AtomicCheckpointer(loaded).load(str(output), checkpointables=[], strict=True)
        assert (loaded.weight == 0.5).all() and loaded.num_batches_tracked == 2
        mean = (states[0]["running_mean"] + states[1]["running_mean"]) / 2
        torch.testing.assert_close(loaded.running_mean, mean)
    assert set(load_file(tmp_path / "average.safetensors")) == set(states[0])


def test_what_does_not_fit_is_one_error_and_nothing_is_written(save, tmp_path):
    first, other = save("a.pth", 1), tmp_path / "b.pth"
    changed = weights(1) | {"linear.weight": torch.zeros(3, 3), "steps": torch.tensor(1.0), "more": torch.zeros(1)}
    del changed["linear.bias"]
    torch.save({"model": changed}, other)
    message = (
        r"error: checkpoint .*b\.pth is from another model than .*a\.pth: 1 missing \(linear\.bias\); "
        r"1 unexpected \(more\); 2 of another shape or type \(linear\.weight \(3, 3\) instead of \(2, 3\), "
        r"steps \(\) instead of \(\) int64\)$"
    )
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, first, other)
    torch.save({"model": weights(float("nan"))}, other)
    with pytest.raises(SystemExit, match=r"b\.pth: linear\.weight has values that are not finite"):
        run(tmp_path, first, other)
    other.write_bytes(first.read_bytes()[:200])
    with pytest.raises(SystemExit, match=r"error: checkpoint .*b\.pth is damaged"):
        run(tmp_path, first, other)
    torch.save({"model": weights(1), "args": Command()}, other)
    with pytest.raises(SystemExit, match=r"error: checkpoint .*b\.pth holds an object of type .*system"):
        run(tmp_path, first, other)
    with pytest.raises(SystemExit, match=r"error: checkpoint .*none\.pth does not exist"):
        run(tmp_path, first, tmp_path / "none.pth")
    assert not (tmp_path / "new").exists()


def test_wrong_arguments(save, tmp_path, capsys):
    files = [save("a.pth", 1), save("b.pth", 1)]
    with pytest.raises(SystemExit, match=r"error: there must be one factor per checkpoint: got 3 for 2"):
        run(tmp_path, *files, "--factors", 1, 2, 3)
    for factors in ((0, 0), (1, -1), (1, "nan")):
        with pytest.raises(SystemExit, match=r"error: factors must be 0 or more, and not all 0"):
            run(tmp_path, *files, "--factors", *factors)
    for arguments in ([tmp_path], [*files, "--last", 1], [tmp_path, files[0], "--last", 1]):
        with pytest.raises(SystemExit, match=r"error: give checkpoints, or one folder and --last N"):
            run(tmp_path, *arguments)
    with pytest.raises(SystemExit):
        tool.main([str(files[0]), "--output", "average.bin"])
    assert "--output must end in .safetensors or .pth" in capsys.readouterr().err
