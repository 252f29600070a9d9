"""The emulated kernels in Python: in `Emulation(...)` the operators of `torch.ops.detrx` run them on CPU tensors."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cuda_on_cpu.build import ROOT, library

# Before every so many accesses to memory, on average, another thread goes on.
ACCESSES_BETWEEN_THREADS = 50


class EmulationError(AssertionError):
    """What kernels did wrong, with the place in the source."""


class Emulation(TorchDispatchMode):
    """A context in which calls of `detrx` operators with CPU tensors run the CUDA kernels, and are checked.

    Tensors that the kernels are given must be made inside, so that it is known where they begin and end.

    Args:
        seed: of the order in which threads and blocks run.
        max_blocks: grids are cut to so many blocks in x, so that kernels have to loop; 0: they are not.
        check: look for races and wrong accesses. Without, kernels run several times faster.
    """

    def __init__(self, seed: int, max_blocks: int = 0, check: bool = True) -> None:
        super().__init__()
        load()
        self.seed, self.max_blocks, self.check = seed, max_blocks, check
        self.calls = 0

    def __enter__(self) -> "Emulation":
        operators = torch.ops.detrx_emulated
        operators._configure(self.seed, 1 / ACCESSES_BETWEEN_THREADS if self.check else 0, self.max_blocks, self.check)
        operators._track_allocations(True)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        torch.ops.detrx_emulated._track_allocations(False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if namespace not in ("detrx", "detrx_emulated") or not hasattr(torch.ops.detrx_emulated, name):
            return func(*args, **kwargs)
        self.calls += 1
        error = None
        try:
            return getattr(torch.ops.detrx_emulated, name)(*args, **kwargs)
        except RuntimeError as caught:
            error = caught
        finally:
            findings = torch.ops.detrx_emulated._take_findings()
            if findings or error:
                texts = [*findings, *([str(error)] if error else [])]
                message = with_places("\n".join(texts))
                raise EmulationError(f"{name}:\n{message}") from error


@cache
def load() -> None:
    """Load the library, which is built before if it has to be. Raises BuildError."""
    torch.ops.load_library(str(library()))


def with_places(text: str) -> str:
    """`text` with the names of functions, files and lines in the place of addresses in the library."""
    marks = sorted(set(re.findall(r"\{(?:code|function) (0x[0-9a-f]+)\}", text)))
    places = _places(library(), marks)
    text = re.sub(r"\{code (0x[0-9a-f]+)\}", lambda found: places[found[1]][0], text)
    return re.sub(r"\{function (0x[0-9a-f]+)\}", lambda found: places[found[1]][1], text)


def _places(path: Path, addresses: list[str]) -> dict[str, tuple[str, str]]:
    """Of each address, "file:line, inlined at file:line" and the function."""
    if not addresses:
        return {}
    command = ["addr2line", "--exe", str(path), "--functions", "--demangle", "--inlines", "--addresses", *addresses]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {address: (f"{path.name}+{address}",) * 2 for address in addresses}
    places = {}
    for address, block in zip(addresses, re.split(r"^0x[0-9a-f]+\n", output, flags=re.MULTILINE)[1:], strict=True):
        lines = block.splitlines()
        files = [line.removeprefix(f"{ROOT}/").split(" (")[0] for line in lines[1::2]]
        places[address] = (", inlined at ".join(files), lines[-2])
    return places
