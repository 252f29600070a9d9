import os
import platform
import subprocess
import sys

import pytest

from detrx.engine import host_memory

FAULTS = """
import resource
from detrx.engine.host_memory import keep_freed_memory

if {kept}:
    assert keep_freed_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(b"x") * (40 << 20) for _ in range(2)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: bool, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(kept=kept)],
        env={key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@needs_glibc
def test_freed_memory_is_used_again_without_page_faults():
    assert faults(kept=False) > 10_000
    assert faults(kept=True) < 1_000


@needs_glibc
def test_limits_of_the_environment_take_precedence():
    assert faults(kept=True, MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 10_000


@pytest.mark.parametrize(
    ("largest_mmap", "expected"),
    [(2**31 - 1, {-3: 2**31 - 1, -1: 2**31 - 1}), (32 * 2**20, {-3: 32 * 2**20, -1: 2**31 - 1}), (0, {})],
    ids=["glibc 2.35", "older", "refused"],
)
def test_limits_by_what_the_c_library_accepts(monkeypatch, largest_mmap, expected):
    limits = {}

    def mallopt(parameter: int, value: int) -> bool:
        accepted = parameter != -3 or value <= largest_mmap
        if accepted:
            limits[parameter] = value
        return accepted

    for variable in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    monkeypatch.setattr(host_memory, "_mallopt", mallopt)
    assert host_memory.keep_freed_memory() == bool(expected)
    assert limits == expected
