"""Checkpoints as other trainers write them: read by training and by the converter, or refused in one line."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detrx.checkpoint import CheckpointError, read_weights
from detrx.checkpoint.checkpointer import AtomicCheckpointer


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


WEIGHTS = {name: torch.randn(tensor.shape) for name, tensor in network().state_dict().items() if "num" not in name}
OTHERS = {name: tensor + 1 for name, tensor in WEIGHTS.items()}


def prefixed(prefix: str, weights: Mapping[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


class HistoryBuffer:
    """As in the `meta` of mmengine: an object of a type that is not safe to load."""

    def __init__(self):
        self.values = np.arange(3.0)


FORMS: dict[str, Any] = {
    "bare": WEIGHTS,
    "model": {"model": WEIGHTS, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict": {"state_dict": WEIGHTS, "epoch": 3, "loss": torch.tensor(1.0)},
    "model_state_dict": {"model_state_dict": WEIGHTS, "optimizer_state_dict": {}},
    "module": {"module": WEIGHTS, "global_steps": 3},
    "ema": {"ema": WEIGHTS, "step": 3},
    "model_ema": {"model_ema": WEIGHTS},
    "nested": {"ema": {"module": WEIGHTS, "updates": 3}, "date": "today"},
    "trained_and_averaged": {"model": WEIGHTS, "model_ema": OTHERS},
    "distributed": {"state_dict": prefixed("module.")},
    "compiled": {"model": prefixed("_orig_mod.")},
    "compiled_part": {"model": {name.replace("0.", "0._orig_mod."): tensor for name, tensor in WEIGHTS.items()}},
    "lightning": {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.4", "hyper_parameters": {}},
    "compiled_in_lightning": {"state_dict": prefixed("model._orig_mod."), "callbacks": {}},
    "average_of_torch": {"ema": {**prefixed("module."), "n_averaged": torch.tensor(3)}},
    "mmengine": {"meta": {"history": HistoryBuffer(), "epoch": np.float64(3)}, "state_dict": WEIGHTS},
    "arguments": {"model": WEIGHTS, "args": argparse.Namespace(lr=1e-4, path=Path("a"))},
    "bfloat16": {name: tensor.bfloat16() for name, tensor in WEIGHTS.items()},
    "float64": {name: tensor.double() for name, tensor in WEIGHTS.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_common_forms_are_read(form: str, tmp_path: Path):
    path, tolerance = tmp_path / "checkpoint.pth", 1e-2 if form == "bfloat16" else 0
    torch.save(FORMS[form], path)
    found, model = read_weights(path), network()
    AtomicCheckpointer(model).load(str(path), checkpointables=[])
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        torch.testing.assert_close(found[name].float(), tensor, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "content",
    [
        {"model": WEIGHTS, "ema": {"model": OTHERS}},
        {"model": WEIGHTS, "model_ema": prefixed("module.", OTHERS)},
        {"state_dict": WEIGHTS, "ema_state_dict": {**prefixed("module.", OTHERS), "steps": torch.tensor(1)}},
    ],
)
def test_averaged_weights_are_found(content: dict, tmp_path: Path):
    path, model = tmp_path / "checkpoint.pth", network()
    torch.save(content, path)
    found = read_weights(path, ema=True)
    AtomicCheckpointer(model, prefer_ema=True).load(str(path), checkpointables=[])
    for name, tensor in OTHERS.items():
        assert torch.equal(found[name], tensor) and torch.equal(model.state_dict()[name], tensor)


def test_the_average_of_torch_is_written_like_that():
    names = AveragedModel(network()).state_dict()
    assert "n_averaged" in names and all(name == "n_averaged" or name.startswith("module.") for name in names)


def test_a_compiled_model_is_saved_and_loaded_under_its_own_names(tmp_path: Path):
    model, compiled = network(), torch.compile(network())
    AtomicCheckpointer(compiled, str(tmp_path)).save("a")
    AtomicCheckpointer(model).load(str(tmp_path / "a.pth"), strict=True)
    AtomicCheckpointer(torch.compile(model)).load(str(tmp_path / "a.pth"), strict=True)
    assert torch.equal(model[0].weight, compiled._orig_mod[0].weight)


WRONG: list[tuple[Any, str]] = [
    (5, r"it has no state dict. It holds 5; expected tensors by name"),
    (None, r"it has no state dict. It holds None;"),
    ("text", r"It holds 'text';"),
    ([torch.zeros(1)], r"It holds a list;"),
    (torch.zeros(3), r"It holds a Tensor;"),
    ({}, r"It holds \{\};"),
    ({"a": {"b": 1}, "epoch": 3}, r"It holds a dict with the keys a, epoch;"),
    ({"model": "resnet"}, r"It holds a dict with the keys model;"),
    ({"state_dict": {"a": torch.zeros(1), "epoch": 3}}, r"'epoch' is a int, not a tensor"),
    ({"state_dict": {"a": torch.zeros(1), 3: torch.zeros(1)}}, r"3 is a Tensor, not a tensor by name"),
    (network(), r"torch\.nn\.modules|it has no state dict"),
]


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
def test_the_names_of_hugging_face_keep_their_own_prefix(prefix: str, tmp_path: Path):
    names = ["model.encoder.layers.0.self_attn_layer_norm.weight", "model.decoder.class_embed.0.bias"]
    torch.save({prefix + name: torch.ones(2) for name in names}, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == names


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_anything_else_is_one_line(content: Any, message: str, tmp_path: Path):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    for read in (read_weights, AtomicCheckpointer(network()).load):
        with pytest.raises(CheckpointError, match=message) as error:
            read(str(path))
        assert str(error.value).count("\n") == 0 and "odd.pth" in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("damage", [b"", b"\x80", b"5", b"version https://git-lfs.github.com/spec/v1\noid", "cut"])
def test_damaged_files_are_one_line(damage: bytes | str, suffix: str, tmp_path: Path):
    path = tmp_path / f"bad{suffix}"
    torch.save({"model": WEIGHTS}, path)
    path.write_bytes(path.read_bytes()[:-300] if damage == "cut" else damage)
    for read in (read_weights, AtomicCheckpointer(network()).load):
        with pytest.raises(CheckpointError, match=r"checkpoint .*/bad") as error:
            read(str(path))
        assert str(error.value).count("\n") == 0


def test_a_folder_lists_its_checkpoints(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"is a folder: give a file, or convert a folder of transformers"):
        AtomicCheckpointer(network()).load(str(tmp_path))
    torch.save({"model": WEIGHTS}, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"is a folder: give one of its files \(model_final\.pth\)"):
        AtomicCheckpointer(network()).load(str(tmp_path))


class Trap:
    def __init__(self, call: Any, *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [open, os.mkdir, os.system, eval, getattr])
def test_nothing_in_a_file_is_called(call: Any, tmp_path: Path):
    """It is left out, or the file is refused."""
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
    arguments = {
        open: (str(trace), "w"),
        os.mkdir: (str(trace),),
        os.system: (f"touch {trace}",),
        eval: (f"open({str(trace)!r}, 'w')",),
        getattr: ("a", "upper"),
    }[call]
    torch.save({"model": WEIGHTS, "extra": Trap(call, *arguments)}, path)
    try:
        assert read_weights(path).keys() == WEIGHTS.keys()
    except CheckpointError as error:
        assert "--allow-pickle" in str(error)
    assert not trace.exists()
