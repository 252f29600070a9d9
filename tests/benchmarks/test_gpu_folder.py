"""The folder for a GPU machine: what goes in, its size, and the command that runs there. Compiles nothing."""

import json
import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def pack(_benchmarks):
    from gpu import pack

    return pack


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_command_finds_project_and_packages(pack, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    run = script(folder / "run.sh", "")
    run.write_text(pack.RUN_SCRIPT.format(project="project", site="site"))
    python = script(tmp_path / "python", 'echo "$PYTHONPATH"; for each in "$@"; do echo "$each"; done')
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "PYTHONPATH": "/other"}
    output = subprocess.run(
        ["sh", run, "--call", "1"], cwd="/", env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert output == [f"{folder}/project:{folder}/site:/other", f"{folder}/project/tools/gpu_check.py", "--call", "1"]


def test_files_that_git_tracks_or_would(pack, tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "tools").mkdir(parents=True)
    for name in ("tools/a.py", "new.py", "ignored.so", "removed.py"):
        (source / name).write_text(name)
    (source / ".gitignore").write_text("*.so\n")
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "tools", "removed.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (source / "removed.py").unlink()
    monkeypatch.setattr(pack, "ROOT", source)
    pack.copy_project(target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {"tools/a.py", "new.py", ".gitignore"}
    assert pack.commit().endswith("+")


def test_only_folders_of_its_own_are_cleared(pack, tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(SystemExit, match="has other files in it"):
        pack.clear(tmp_path)
    assert (tmp_path / "precious").exists()
    (tmp_path / pack.RUN).write_text("")
    pack.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
    pack.clear(tmp_path / "new" / "one")
    assert (tmp_path / "new" / "one").is_dir()


def test_the_limit_of_the_size(pack, tmp_path, capsys):
    (tmp_path / "large.so").write_bytes(bytes(3 * 2**20))
    (tmp_path / "small.py").write_bytes(bytes(10))
    pack.report_size(tmp_path, 4)
    assert "3.00 MiB  large.so" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"has 3\.0 MiB, more than the 2 MiB of --limit"):
        pack.report_size(tmp_path, 2)


def test_the_toolkit_behind_a_script(pack, tmp_path):
    home = tmp_path / "cuda"
    home.mkdir()
    assert pack.toolkit(str(script(tmp_path / "nvcc", f'echo "#$ TOP={home}/bin/.." >&2'))) == str(home)
    (home / "bin").mkdir()
    assert pack.toolkit(str(script(home / "bin" / "nvcc", "exit 1"))) == str(home)
    assert pack.toolkit(None) is None


def test_an_interpreter_without_cuda(pack, tmp_path):
    about = json.dumps({"python": "3.12.1", "torch": "2.11.0+cpu", "cuda": None})
    python = script(tmp_path / "python", f"echo '{about}'")
    with pytest.raises(SystemExit, match="is built without CUDA"):
        pack.main(["--python", str(python), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_shows_why(pack, tmp_path, capsys):
    with pytest.raises(SystemExit, match="failed with 3"):
        pack.run([str(script(tmp_path / "fails", "echo the reason >&2; exit 3"))])
    assert "the reason" in capsys.readouterr().err
