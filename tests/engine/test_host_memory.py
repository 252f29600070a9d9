import os
import platform
import subprocess
import sys

import pytest

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
