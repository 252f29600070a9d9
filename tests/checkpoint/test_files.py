"""Reading weights safely, and writing them."""

import json
import pickle
import tarfile

import pytest
import torch
from safetensors.torch import save_file

from detrx.checkpoint import CheckpointError, read_weights, write_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.5)}


def assert_same(found, expected=WEIGHTS):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_written_weights_are_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write_weights(path, WEIGHTS)
    assert_same(read_weights(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.pth"
    write_weights(path, WEIGHTS)
    with pytest.raises(RuntimeError, match="meant to fail"):
        write_weights(path, {"a": Unwritable()})
    assert_same(read_weights(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"\.safetensors or \.pth"):
        write_weights(tmp_path / "weights.bin", WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "optimizer": {"state": {}}, "epoch": 49},
        {"state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    ],
    ids=["bare", "training", "wrapped"],
)
def test_layouts_of_torch_files(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    assert_same(read_weights(path))


def shard(folder, names=("model-1-of-2.safetensors", "model-2-of-2.safetensors")):
    parts = dict(zip(names, ({"a.weight": WEIGHTS["a.weight"]}, {"b": WEIGHTS["b"]}), strict=True))
    for name, part in parts.items():
        save_file(part, folder / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_folder_of_transformers(tmp_path):
    shard(tmp_path)
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same(read_weights(tmp_path))
    assert_same(read_weights(tmp_path / "model.safetensors.index.json"))
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of the 2 files that .* names are missing: model-2-of-2"):
        read_weights(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    shard(folder, names=("model-1.safetensors", "../model-2.safetensors"))
    with pytest.raises(CheckpointError, match=r"outside its folder: '\.\./model-2\.safetensors'"):
        read_weights(folder)


class Unwritable:
    def __reduce__(self):
        raise RuntimeError("meant to fail")


def test_model_zoo_pickle_needs_permission(tmp_path):
    path = tmp_path / "model.pkl"
    arrays = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=2))
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        read_weights(path)
    assert_same(read_weights(path, allow_pickle=True))


def test_tar_format_needs_permission(tmp_path):
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("storages", "tensors", "pickle"):
            (tmp_path / name).write_bytes(b"")
            tar.add(tmp_path / name, name)
    with pytest.raises(CheckpointError, match=r"old\.pth is in the tar format.*--allow-pickle"):
        read_weights(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"\x10", r"a\.safetensors is damaged"),
        ("a.pth", b"no checkpoint", r"a\.pth is"),
        ("model.safetensors.index.json", b"[]", "has no weight_map"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / name)


def test_what_holds_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"has no weights: expected one of model\.safetensors"):
        read_weights(tmp_path)
    torch.save({"model": {"a": torch.zeros(1), "epoch": 3}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="'epoch' is a int, not a tensor"):
        read_weights(tmp_path / "odd.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="it has no state dict"):
        read_weights(tmp_path / "list.pth")
