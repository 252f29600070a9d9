#!/usr/bin/env python3
"""Registers, memory and machine instructions of the CUDA kernels, as the compiler makes them. Needs nvcc, but no GPU.

Compiles every csrc/**/*.cu to machine code for one architecture and disassembles it. For each kernel: registers of a
thread, warps that an SM holds with so many registers, bytes of stack, of spilled registers and of static shared
memory, and instructions: all of them, and those of its hottest loop, which is the innermost loop that adds to global
memory, or else the one with the widest loads from it. "per load" is the number of instructions there for each load.

The disassembler is nvdisasm of the toolkit, or the one inside the installed triton.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sass

ROOT = Path(__file__).resolve().parents[1]
REGISTERS_OF_AN_SM, WARPS_OF_AN_SM, REGISTERS_AT_A_TIME = 65536, 64, 256
TYPES = {
    "c10::BFloat16": "bfloat16",
    "__nv_bfloat16": "bfloat16",
    "c10::Half": "float16",
    "__half": "float16",
    "double": "float64",
    "float": "float32",
    "unsigned char": "uint8",
    "unsigned short": "uint16",
    "unsigned int": "uint32",
    "unsigned long": "uint64",
    "long": "int64",
}


@dataclass
class Loop:
    """An innermost loop: instructions of one iteration, by all branches, and what of them goes to memory."""

    instructions: int = 0
    global_loads: dict[str, int] = field(default_factory=dict)
    shared_loads: dict[str, int] = field(default_factory=dict)
    reductions: dict[str, int] = field(default_factory=dict)
    shuffles: int = 0

    @property
    def loads(self) -> int:
        return sum(self.global_loads.values())

    @property
    def heat(self) -> tuple[int, ...]:
        """Orders loops by what makes them hot: sums in global memory, the widest loads, their bits, the length."""
        in_global_memory = any(not name.startswith("ATOMS") for name in self.reductions)
        bits = [(int(width), count) for width, count in self.global_loads.items()]
        loaded = sum(width * count for width, count in bits)
        return in_global_memory, max((width for width, _ in bits), default=0), loaded, self.instructions


@dataclass
class Kernel:
    """What is known of a kernel without running it. Bytes are of a thread, shared memory is of a block."""

    family: str
    kernel: str
    arguments: list[str]
    source: str
    registers: int
    warps_per_sm: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int
    instructions: int
    global_loads: dict[str, int]
    global_stores: dict[str, int]
    reductions: dict[str, int]
    barriers: dict[str, int]
    loop: Loop

    @property
    def name(self) -> str:
        arguments = f"<{', '.join(self.arguments)}>" if self.arguments else ""
        return f"{self.family} {self.kernel}{arguments}"


def find_disassembler() -> str:
    """nvdisasm on PATH, of CUDA_HOME, or of the installed triton."""
    places = [Path(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    places += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    spec = importlib.util.find_spec("triton")
    for folder in spec.submodule_search_locations if spec else ():
        places.append(Path(folder, "backends", "nvidia", "bin"))
    for place in places:
        if (place / "nvdisasm").is_file():
            return str(place / "nvdisasm")
    raise SystemExit("nvdisasm was not found: on PATH, in CUDA_HOME/bin or in the installed triton")


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).is_file():
        raise SystemExit("nvcc was not found: on PATH or in CUDA_HOME/bin")
    return nvcc


def include_folders() -> list[str]:
    """Of torch, and of the toolkit's parts that are installed as Python packages."""
    from torch.utils.cpp_extension import include_paths

    folders = include_paths("cuda")
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else ():
        folders += [str(path) for path in sorted(Path(place).glob("*/include"))]
    return folders


def compile_kernels(nvcc: str, source: Path, arch: str, cubin: Path) -> str:
    """Compiles with the options of the extension; the report of the assembler."""
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    command = [nvcc, "-O3", "-std=c++17", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", *COMMON_NVCC_FLAGS]
    command += [flag for folder in include_folders() for flag in ("-isystem", folder)]
    result = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True, encoding="utf-8")
    if result.returncode:
        raise SystemExit(f"{source} does not compile for sm_{arch}:\n{result.stderr}")
    return result.stderr


def assembler_report(text: str) -> dict[str, dict[str, int]]:
    """Resources of each kernel (by mangled name) from what `ptxas -v` says."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "static_shared": r"(\d+) bytes smem",
        "stack": r"(\d+) bytes stack frame",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    kernels = {}
    for part in re.split(r"Compiling entry function ", text)[1:]:
        name = re.match(r"'(\S+)'", part)[1]
        found = {key: re.search(pattern, part) for key, pattern in patterns.items()}
        kernels[name] = {key: int(match[1]) if match else 0 for key, match in found.items()}
    return kernels


def demangle(names: list[str]) -> dict[str, str]:
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return dict(zip(names, result.stdout.splitlines(), strict=True))


def readable(signature: str) -> tuple[str, list[str]]:
    """Name and template arguments of a demangled kernel: "void a::f<float, 4>(int)" -> "f", ["float32", "4"]."""
    depth, name, pieces = 0, "", [""]
    for letter in signature.replace("(anonymous namespace)::", "").replace("(int)", "").replace("(bool)", ""):
        if letter == "(" and depth == 0:
            break  # the parameters
        depth -= letter == ">"
        if depth == 0:
            name += letter if letter not in "<>" else ""
        elif depth == 1 and letter == ",":
            pieces.append("")
        else:
            pieces[-1] += letter
        depth += letter == "<"
    arguments = [piece.strip() for piece in pieces if piece.strip()]
    return re.split(r"\s|::", name)[-1], [TYPES.get(each, re.sub(r"\w+::", "", each)) for each in arguments]


def _counted(counts: Counter[str], *operations: str) -> dict[str, int]:
    """The instructions of these operations, most frequent first."""
    return {name: count for name, count in counts.most_common() if name.split(".")[0] in operations}


def _widths(counts: Counter[str], *operations: str) -> dict[str, int]:
    """How often so many bits of a thread are moved at a time: {"128": 4, "32": 1}."""
    bits: Counter[str] = Counter()
    for name, count in _counted(counts, *operations).items():
        modifiers = name.split(".")
        width = next((each for each in ("128", "64", "U16", "S16", "16", "U8", "S8") if each in modifiers), "32")
        bits[width.strip("US")] += count
    return dict(sorted(bits.items(), key=lambda item: -int(item[0])))


def hottest_loop(function: sass.Function) -> Loop:
    """The innermost loop with the most heat."""
    best = Loop()
    for body in sass.innermost_loops(function):
        counts = function.counts(body)
        loop = Loop(
            instructions=len(body),
            global_loads=_widths(counts, "LDG"),
            shared_loads=_widths(counts, "LDS"),
            reductions=_counted(counts, "RED", "ATOM", "ATOMG", "ATOMS", "REDG"),
            shuffles=sum(_counted(counts, "SHFL").values()),
        )
        best = max(best, loop, key=lambda each: each.heat)
    return best


def family_of(source: Path) -> str:
    """The folder of csrc that a source is in, at any depth; outside of csrc, its own folder."""
    csrc = ROOT / "csrc"
    return source.relative_to(csrc).parts[0] if source.is_relative_to(csrc) else source.parent.name


def describe(source: Path, function: sass.Function, signature: str, resources: dict[str, int]) -> Kernel:
    name, arguments = readable(signature)
    counts = function.counts()
    held = -(-resources["registers"] * 32 // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
    return Kernel(
        family=family_of(source),
        kernel=name,
        arguments=arguments,
        source=str(source.relative_to(ROOT)) if source.is_relative_to(ROOT) else source.name,
        warps_per_sm=min(WARPS_OF_AN_SM, REGISTERS_OF_AN_SM // max(held, 1)),
        instructions=sum(counts.values()) - counts["NOP"],
        global_loads=_widths(counts, "LDG"),
        global_stores=_widths(counts, "STG"),
        reductions=_counted(counts, "RED", "ATOM", "ATOMG", "ATOMS", "REDG"),
        barriers=_counted(counts, "BAR", "WARPSYNC"),
        loop=hottest_loop(function),
        **resources,
    )


def inspect(source: Path, arch: str) -> list[Kernel]:
    """All kernels of a CUDA source, in the order of their names."""
    nvcc, disassembler = find_nvcc(), find_disassembler()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        resources = assembler_report(compile_kernels(nvcc, source, arch, cubin))
        text = subprocess.run(
            [disassembler, "-c", str(cubin)], capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout
    functions = sass.parse(text)
    signatures = demangle(list(resources))
    kernels = [describe(source, functions[name], signatures[name], resources[name]) for name in resources]
    return sorted(kernels, key=lambda kernel: kernel.name)


def table_row(kernel: Kernel) -> dict[str, object]:
    loads = " ".join(f"{count}x{bits}" for bits, count in kernel.loop.global_loads.items())
    reductions = " ".join(f"{count} {name}" for name, count in kernel.loop.reductions.items())
    return {
        "kernel": kernel.name,
        "registers": kernel.registers,
        "warps/SM": kernel.warps_per_sm,
        "stack": kernel.stack,
        "spilled": kernel.spill_stores + kernel.spill_loads,
        "shared": kernel.static_shared,
        "instructions": kernel.instructions,
        "loop": kernel.loop.instructions,
        "its loads": loads,
        "per load": round(kernel.loop.instructions / kernel.loop.loads, 1) if kernel.loop.loads else "",
        "its reductions": reductions,
    }


def last_commit(folder: Path) -> str:
    """The commit that last changed a folder, "+" behind it if it has changed since; "unknown" outside of git."""
    git = ["git", "-C", str(folder)]
    log = subprocess.run(
        [*git, "log", "-1", "--format=%h", "--", "."], capture_output=True, text=True, encoding="utf-8"
    )
    status = subprocess.run(
        [*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, encoding="utf-8"
    )
    return log.stdout.strip() + ("+" if status.stdout.strip() else "") or "unknown"


def provenance(nvcc: str) -> dict[str, str]:
    """With which compiler, and of which state of the sources."""
    import torch

    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True, encoding="utf-8").stdout
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".cu", ".cuh", ".h"):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return {
        "nvcc": re.search(r"V(\d[\d.]*)", version)[1],
        "torch": torch.__version__,
        "commit": last_commit(ROOT / "csrc"),
        "csrc_sha256": digest.hexdigest()[:16],
    }


def as_json(about: dict[str, str], kernels: list[Kernel]) -> str:
    """One line for each kernel, so that a comparison of two files shows which of them changed."""
    lines = ",\n  ".join(json.dumps(asdict(kernel)) for kernel in kernels)
    return f'{json.dumps(about, indent=1)[:-2]},\n "kernels": [\n  {lines}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="90", help="compute capability, such as 80 or 90a (default: 90)")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAMILY", help="folders of csrc (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: results/kernel_resources_sm*.json here")
    args = parser.parse_args()
    from harness import RESULTS, print_table

    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    families = sorted(set(map(family_of, sources)))
    if unknown := set(args.only) - set(families):
        parser.error(f"--only {' '.join(sorted(unknown))}: expected of {', '.join(families)}")
    kernels: list[Kernel] = []
    for source in sources:
        if not args.only or family_of(source) in args.only:
            print(f"compiling {source.relative_to(ROOT)}", file=sys.stderr, flush=True)
            kernels += inspect(source, args.arch)
    print_table([table_row(kernel) for kernel in kernels])
    path = args.output or RESULTS / f"kernel_resources_sm{args.arch}.json"
    path.write_text(as_json(provenance(find_nvcc()) | {"arch": f"sm_{args.arch}"}, kernels), encoding="utf-8")
    print("written:", path)


if __name__ == "__main__":
    main()
