"""Builds guard.cpp against the torch that runs, once: `build/pretended_cuda/guard-<hash>.so`."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("guard.cpp")
FOLDER = ROOT / "build" / "pretended_cuda"
# Its hooks and the places at which Python asks for a GPU are known. Others may work; where they do not, tests that need
# the pretence are skipped instead of failing.
KNOWN_TORCH = ("2.11.",)


class Unavailable(RuntimeError):
    """Here nothing can pretend to be a GPU; the message says why."""


def is_known_torch() -> bool:
    return torch.__version__.startswith(KNOWN_TORCH)


@functools.cache
def build_guard() -> Path:
    """The compiled guard.

    Raises:
        Unavailable: this torch knows no CUDA, or there is no compiler, or (unless the torch is a known one) its hooks
            are others.
        RuntimeError: it does not compile.
    """
    if not torch.backends.cuda.is_built():
        raise Unavailable(f"torch {torch.__version__} is built without CUDA")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("no C++ compiler: neither $CXX nor g++ nor clang++")
    package = Path(torch.__file__).parent
    command = [*compiler.split(), "-std=c++17", "-O1", "-shared", "-fPIC", str(SOURCE)]
    command += [f"-I{package / 'include'}", f"-L{package / 'lib'}", "-ltorch_cpu", "-lc10"]
    command.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    key = "\n".join([torch.__version__, *command]).encode() + SOURCE.read_bytes()
    library = FOLDER / f"guard-{hashlib.sha256(key).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w", encoding="utf-8") as lock:  # several test processes may want it at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.is_file():
            partial = library.with_suffix(".partial")
            done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
            if done.returncode and not is_known_torch():
                raise Unavailable(f"guard.cpp does not compile against torch {torch.__version__}: its hooks differ")
            if done.returncode:
                raise RuntimeError(f"guard.cpp does not compile:\n{done.stderr}")
            partial.replace(library)
    return library


def install_guard() -> None:
    """Replace torch's CUDA hooks in this process. There is no way back."""
    ctypes.CDLL(str(build_guard())).pretend_install()
