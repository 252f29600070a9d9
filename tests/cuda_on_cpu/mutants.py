"""Plants faults into the CUDA kernels, one by one, and sees whether the emulated tests find them.

    python -m tests.cuda_on_cpu.mutants                  # all of them: hours on one core
    python -m tests.cuda_on_cpu.mutants --only moe/      # those whose file or description has this in it
    python -m tests.cuda_on_cpu.mutants --list

A fault that is not found is an error, unless its entry says why it cannot be. With all faults, the results are written
to MUTANTS.md beside this file.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.cuda_on_cpu.build import HERE, ROOT
from tests.cuda_on_cpu.mutants_of_moe import MOE
from tests.cuda_on_cpu.mutants_of_ms_deform_attn import MS_DEFORM_ATTN
from tests.cuda_on_cpu.mutants_of_query_routing import QUERY_ROUTING
from tests.cuda_on_cpu.planted import Mutant, MutantError

MUTANTS: list[Mutant] = [*MS_DEFORM_ATTN, *MOE, *QUERY_ROUTING]
TABLE = HERE / "MUTANTS.md"
TIMEOUT = 900  # seconds
# What tests say of a fault, and what kind of finding that is; the first that fits.
KINDS = {
    r"race: ": "race",
    r"uninitialised shared memory": "uninitialised shared memory",
    r"out of bounds|outside of all tensors|out of the bounds": "access out of bounds",
    r"misaligned": "misaligned access",
    r"meet at different places|no thread can go on|takes no part|does not contain it": "barrier or operation of a warp",
    r"assertion failed": "assertion of the kernel",
    r"invalid launch|too much shared memory|__launch_bounds__": "launch",
    r"does not end": "no end",
    r"by (?:thread|the host)": "arithmetic",
    r"not close|not equal|torch\.equal|DID NOT RAISE|did not match|assert ": "wrong result",
    r"Fatal Python error|Segmentation": "crash",
}


class Result(NamedTuple):
    """What the tests said of a mutant: nothing, or a kind of finding, and the test that found it."""

    mutant: Mutant
    kind: str
    test: str

    @property
    def found(self) -> bool:
        return bool(self.kind)


def plant(mutant: Mutant, folder: Path) -> Path:
    """A copy of csrc with the fault, in `folder`."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    path = csrc / mutant.file
    path.write_text(mutant.apply(path.read_text()))
    return csrc


def try_mutant(mutant: Mutant | None, test: str) -> tuple[str, str]:
    """Kind of what the tests find, and the test that does; empty where they find nothing."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = plant(mutant, Path(folder)) if mutant else ROOT / "csrc"
        environment = {**os.environ, "DETRX_EMULATED_SOURCES": str(csrc)}
        build = [sys.executable, "-m", "tests.cuda_on_cpu.build"]
        built = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
        if built.returncode != 0:
            raise MutantError(f"{mutant.what if mutant else 'csrc'} does not compile:\n{built.stderr}")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", "emulated", test]
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return f"no end within {TIMEOUT} s", ""
    output = run.stdout + run.stderr
    if run.returncode == 0:
        return "", ""
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(\w+)", output, re.MULTILINE)
    if run.returncode not in (1, -11, -6, 139, 134) or (run.returncode == 1 and not failed):
        raise MutantError(f"{mutant.what if mutant else 'csrc'}: the tests did not run:\n{output[-3000:]}")
    errors = "\n".join(re.findall(r"^E  .*$|^Fatal Python error.*$", output, re.MULTILINE))
    kind = next((kind for pattern, kind in KINDS.items() if re.search(pattern, errors)), "another error")
    return kind, failed[1] if failed else ""


def table(results: list[Result], seconds: float) -> str:
    found = sum(result.found for result in results)
    lines = [
        "# Faults planted into the CUDA kernels",
        "",
        f"Written by `make mutants`: {found} of {len(results)} faults are found by the emulated tests "
        f"({seconds / 60:.0f} minutes).",
    ]
    for file in dict.fromkeys(result.mutant.file for result in results):
        lines += ["", f"## {file}", "", "| fault | found as | by |", "|---|---|---|"]
        for mutant, kind, test in results:
            if mutant.file == file:
                by = f"`{test}`" if test else ""
                lines.append(
                    f"| {mutant.what} | {kind or 'not found: ' + (mutant.reason or '**no reason known**')} | {by} |"
                )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose file or description has this in it")
    parser.add_argument("--list", action="store_true", help="list the faults")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in f"{mutant.file}: {mutant.what}"]
    for mutant in chosen:
        mutant.apply((ROOT / "csrc" / mutant.file).read_text())  # fails at once where a text no longer fits
        if options.list:
            print(f"{mutant.file}: {mutant.what}")
    if options.list:
        return 0
    began = time.monotonic()
    for test in dict.fromkeys(mutant.test for mutant in chosen):
        kind, failed = try_mutant(None, test)
        if kind:
            raise MutantError(f"the tests fail without a fault: {failed}, {kind}")
    results = []
    for mutant in chosen:
        start = time.monotonic()
        result = Result(mutant, *try_mutant(mutant, mutant.test))
        results.append(result)
        verdict = f"found, {result.kind}" if result.found else f"not found, {mutant.reason or 'no reason known'}"
        print(f"{mutant.file}: {mutant.what}: {verdict} ({time.monotonic() - start:.0f} s)", flush=True)
    if len(chosen) == len(MUTANTS):
        TABLE.write_text(table(results, time.monotonic() - began))
    missed = [result for result in results if not result.found and not result.mutant.reason]
    wrong = [result for result in results if result.found and result.mutant.reason]
    for result in wrong:
        print(f"{result.mutant.file}: {result.mutant.what}: is found, although its entry says why it is not")
    return 1 if missed or wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MutantError as error:
        sys.exit(f"mutants: error: {error}")
