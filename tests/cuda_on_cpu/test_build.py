"""Building the emulated kernels: what cannot be built is told with its place, and nothing is built twice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build as builder
from tests.cuda_on_cpu.build import ROOT, BuildError, build, library, unavailable


def write_kernels(folder: Path, text: str) -> Path:
    (folder / "family").mkdir()
    (folder / "family" / "header.cuh").write_text("#pragma once\n" + text)
    (folder / "family" / "main.cu").write_text('#include "header.cuh"\n')
    return folder


def test_source_that_cannot_be_emulated(tmp_path):
    with pytest.raises(BuildError, match=r"family/header.cuh:3: not emulated: cooperative groups"):
        build(write_kernels(tmp_path, "\nusing namespace cooperative_groups;\n"))


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_source_that_does_not_compile(tmp_path):
    library()  # the other files are there, then
    with pytest.raises(BuildError, match=r"family/header.cuh:3:\d+: error: .*unknown.* was not declared"):
        build(write_kernels(tmp_path, "void launch() {\n  int* pointer = unknown;\n}\n"))


def test_no_kernels(tmp_path):
    with pytest.raises(BuildError, match=f"no kernels in {tmp_path}"):
        build(tmp_path)


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_nothing_is_built_twice(tmp_path):
    path = library()
    built = path.stat().st_ino
    # Without a compiler that does anything but tell its version.
    compiler = tmp_path / "g++"
    tells_version = f'if [ "$1" = --version ]; then exec {builder.compiler()[0]} --version; fi'
    compiler.write_text(f"#!/bin/sh\n{tells_version}\nexit 1\n")
    compiler.chmod(0o755)
    command = [sys.executable, "-m", "tests.cuda_on_cpu.build"]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "CXX": str(compiler)}, capture_output=True, text=True)
    assert run.returncode == 0 and str(path.relative_to(ROOT)) in run.stdout, run.stderr
    assert path.stat().st_ino == built


@pytest.mark.parametrize(
    "name,value,reason",
    [
        ("sys.platform", "darwin", "on x86-64 Linux only, this is x86_64 darwin"),
        ("platform.machine", lambda: "aarch64", "on x86-64 Linux only, this is aarch64 linux"),
        ("shutil.which", lambda name: None, "need the C\\+\\+ compiler"),
        ("ISA", ("avx2", "unheard_of"), "need a processor with unheard_of"),
    ],
)
def test_machines_without(monkeypatch, name, value, reason):
    if unavailable():
        pytest.skip(unavailable())
    monkeypatch.setattr(f"tests.cuda_on_cpu.build.{name}", value)
    assert re.search(reason, unavailable())
