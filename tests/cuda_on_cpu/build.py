"""Builds the emulated kernels: `python -m tests.cuda_on_cpu.build` from the project's root, or `library()` from a test.

What is compiled is kept under `build/cuda_on_cpu` by the hash of all that goes into it, so that only what changed is
compiled again. Several processes may ask at once: one builds, the others wait.

MAX_JOBS               compilers run at the same time; default: all cores
CXX                    compiler, GCC or Clang; default: g++
DETRX_EMULATED_SOURCES folder to take instead of csrc
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from tests.cuda_on_cpu.rewrite import RewriteError, closure, rewrite, torch_includes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_on_cpu"
KEPT_DAYS = 14
ISA = ("avx2", "fma", "bmi2")  # the kernels' multiplications and additions are fused, as nvcc fuses them
# PyTorch's headers warn a lot; what the code of kernels does wrong is found when it runs.
COMMON = [
    "-std=c++17", "-fPIC", "-g1", "-w", "-march=x86-64-v3", "-ffp-contract=fast", "-fno-math-errno",
    "-fvisibility=hidden",
]  # fmt: skip
CHECKED = "-fsanitize=thread,alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow"
KERNEL_FLAGS = [*COMMON, "-O1", CHECKED, "-fno-omit-frame-pointer"]
HOST_FLAGS = [*COMMON, "-O1"]
RUNTIME_FLAGS = [*COMMON, "-O2"]


class BuildError(Exception):
    """A source that cannot be rewritten or compiled; the text has the compiler's messages."""


class Unit(NamedTuple):
    """A file to compile: its flags, and the hash of everything that decides what comes out."""

    source: Path
    object: Path
    flags: list[str]


def unavailable() -> str:
    """Why kernels cannot be emulated on this machine; empty where they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"kernels are emulated on x86-64 Linux only, this is {platform.machine()} {sys.platform}"
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    missing = [name for name in ISA if flags and name not in flags[1].split()]
    if missing:
        return f"emulated kernels need a processor with {', '.join(missing)}"
    if shutil.which(compiler()[0]) is None:
        return f"emulated kernels need the C++ compiler {compiler()[0]!r}"
    return ""


@cache
def library() -> Path:
    """The library of this process's emulated kernels, built if it is not there. Raises BuildError."""
    return build(Path(os.environ.get("DETRX_EMULATED_SOURCES") or ROOT / "csrc"))


def build(csrc: Path) -> Path:
    """Build the library for the sources in `csrc`, unless it is there. Raises BuildError."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with _locked(BUILD / "lock"):
        units = _units(csrc.resolve())
        _compile([unit for unit in units if not unit.object.is_file()])
        target = BUILD / f"detrx_emulated-{_hash(*(unit.object.name for unit in units))}.so"
        if not target.is_file():
            _link(target, units)
        for path in (target, *(unit.object for unit in units)):
            os.utime(path)
        _remove_old()
    return target


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "g++")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _common_hash(*folders: str) -> str:
    """Of the compiler, PyTorch and the emulation's own headers in these folders."""
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    headers = sorted(path for folder in folders for path in (HERE / folder).rglob("*.h"))
    return _hash(version, torch.__version__, torch.__file__, str(ROOT), *(path.read_text() for path in headers))


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _units(csrc: Path) -> list[Unit]:
    """All that is linked: the kernels and their host code, the emulation, and kernels with faults that it must find."""
    kernels = _family_files(csrc, "*.cu")
    host = [path for path in _family_files(csrc, "*.cpp") if path.parent.name != "cpu"]
    if not kernels:
        raise BuildError(f"no kernels in {csrc}")
    return [
        *(_rewritten(path, csrc, KERNEL_FLAGS) for path in [*kernels, *sorted(HERE.glob("kernels/*.cu"))]),
        *(_rewritten(path, csrc, HOST_FLAGS) for path in host),
        *(_unit(path, path.read_text(), RUNTIME_FLAGS, "include", "src") for path in sorted(HERE.glob("src/*.cpp"))),
    ]


def _family_files(csrc: Path, pattern: str) -> list[Path]:
    """Files of the families, which are folders; what lies beside them is the extension module's."""
    return sorted(csrc.glob(f"*/**/{pattern}"))


def _unit(source: Path, contents: str, flags: list[str], *headers: str) -> Unit:
    name = f"{source.stem}-{_hash(_common_hash(*headers), *flags, contents)}.o"
    return Unit(source, BUILD / "objects" / name, flags)


def _rewritten(path: Path, csrc: Path, flags: list[str]) -> Unit:
    """Writes `path` and the project's headers that it includes as C++, to a folder of their own."""
    base = csrc if path.is_relative_to(csrc) else HERE
    texts: dict[str, str] = {}
    includes: list[str] = []
    try:
        for file in closure(path):
            relative = file.relative_to(base)
            name = f"{base.name}/{relative}"
            text = file.read_text()
            includes += torch_includes(text)
            texts[str(relative)] = f'#line 1 "{name}"\n' + rewrite(text, name)
    except RewriteError as error:
        raise BuildError(str(error)) from error
    if path.suffix == ".cu":
        first = [f"<{name}>" for name in dict.fromkeys(includes)]
        lines = ['"cuda_on_cpu/copies.h"', *first, '"cuda_on_cpu/kernel.h"']
        key = str(path.relative_to(base))
        texts[key] = "".join(f"#include {line}\n" for line in lines) + texts[key]
    contents = "\0".join(f"{name}\0{text}" for name, text in texts.items())
    folder = BUILD / "sources" / f"{path.stem}-{_hash(contents)}"
    for name, text in texts.items():
        target = folder / name
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    source = (folder / path.relative_to(base)).with_suffix(".cpp")
    if path.suffix == ".cu":
        source.write_text((folder / path.relative_to(base)).read_text())
    return _unit(source, contents, flags, "include")


def _torch_folder() -> Path:
    return Path(torch.__file__).resolve().parent


def _compile(units: list[Unit]) -> None:
    if not units:
        return
    (BUILD / "objects").mkdir(exist_ok=True)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    # The longest first.
    units = sorted(units, key=lambda unit: -unit.source.stat().st_size)
    with ThreadPoolExecutor(jobs) as pool:
        errors = [error for error in pool.map(_compile_one, units) if error]
    if errors:
        raise BuildError("\n\n".join(errors))


def _compile_one(unit: Unit) -> str:
    """Compiles a file; the compiler's messages if it fails."""
    torch_include = _torch_folder() / "include"
    include = [HERE / "include", HERE / "src", torch_include, torch_include / "torch" / "csrc" / "api" / "include"]
    temporary = unit.object.with_suffix(".tmp")
    command = [*compiler(), *unit.flags, *(f"-I{path}" for path in include), "-c", str(unit.source), "-o", temporary]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        return f"compiling {unit.source.name} for the CPU failed:\n{done.stderr[:6000]}"
    temporary.replace(unit.object)
    return ""


def _link(target: Path, units: list[Unit]) -> None:
    libraries = _torch_folder() / "lib"
    temporary = target.with_suffix(".tmp")
    command = [
        *compiler(), "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-o", temporary, *(unit.object for unit in units),
        f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise BuildError(f"linking the emulated kernels failed:\n{done.stderr[:6000]}")
    temporary.replace(target)


def _remove_old() -> None:
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in (*BUILD.glob("*.so"), *BUILD.glob("objects/*")):
        if path.stat().st_mtime < oldest:
            path.unlink()
    for folder in BUILD.glob("sources/*"):
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder)


if __name__ == "__main__":
    reason = unavailable()
    if reason:
        print(f"emulated kernels: skipped, {reason}")
    else:
        began = time.monotonic()
        try:
            path = library()
        except BuildError as error:
            raise SystemExit(f"emulated kernels: error: {error}") from None
        print(f"emulated kernels: {path.relative_to(ROOT)} ({time.monotonic() - began:.1f} s)")
