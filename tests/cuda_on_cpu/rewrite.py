"""CUDA sources as C++ that the execution model runs: text in, text with the same lines out.

Rewritten are launches, shared memory, launch bounds, and the registration of operators: those of `detrx` for CUDA
tensors become those of `detrx_emulated` for CPU tensors. All else is left to the headers in `include`.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# What no header can refuse with a reason.
UNSUPPORTED = {
    r"\bcooperative_groups\b": "cooperative groups",
    r"\bcudaLaunchKernel(Ex)?\b": "cudaLaunchKernel; launch with <<<...>>>",
    r"\b(cuda::pipeline|cuda::barrier|cuda/barrier|cuda/pipeline)\b": "asynchronous copies and barriers",
    r"\bcudaOccupancy\w+": "occupancy, which depends on the registers of the GPU's code",
    r"\b(at::kCUDA|DeviceType::CUDA)\b": "naming the device; use the device of a tensor",
    r"#\s*include\s*<ATen/cuda/": "headers of ATen/cuda; use c10/cuda",
    r"^\s*(?:static\s+)?(?:__device__|__managed__)[^(){};]*;": "variables in global memory; use a tensor",
}
COMMENT_OR_STRING = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | R"(?P<raw>[^(\s]*)\(.*?\)(?P=raw)" | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+' """,
    re.VERBOSE | re.DOTALL,
)
PAIRS = {"(": ")", "[": "]", "{": "}"}


class RewriteError(Exception):
    """A source that cannot be emulated, with its place and the reason."""


class Edit(NamedTuple):
    begin: int
    end: int
    text: str


def rewrite(text: str, name: str) -> str:
    """C++ for the CUDA source `text`, line by line; `name` is what errors call the file."""
    code = _without_comments_and_strings(text)

    def fail(position: int, why: str) -> RewriteError:
        return RewriteError(f"{name}:{code.count(chr(10), 0, position) + 1}: not emulated: {why}")

    for pattern, why in UNSUPPORTED.items():
        for found in re.finditer(pattern, code, re.MULTILINE):
            raise fail(found.start(), why)
    edits = [
        *_launches(code, fail),
        *_dynamic_shared(code, fail),
        *_static_shared(code, fail),
        *_launch_bounds(code, fail),
        *_registration(code),
    ]
    for begin, end, replacement in sorted(edits, reverse=True):
        lines = "\n" * (text.count("\n", begin, end) - replacement.count("\n"))
        text = text[:begin] + replacement + lines + text[end:]
    return text


def _without_comments_and_strings(text: str) -> str:
    """The text with spaces in their place, so that positions stay."""
    return COMMENT_OR_STRING.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _closing(code: str, begin: int) -> int:
    """Position of the bracket that closes the one at `begin`, or -1."""
    opening, closing = code[begin], PAIRS[code[begin]]
    depth = 0
    for position in range(begin, len(code)):
        depth += (code[position] == opening) - (code[position] == closing)
        if depth == 0:
            return position
    return -1


Fail = Callable[[int, str], RewriteError]


def _launches(code: str, fail: Fail) -> Iterator[Edit]:
    for found in re.finditer("<<<", code):
        depth, end = 0, found.end()
        while end < len(code) and not (depth == 0 and code.startswith(">>>", end)):
            depth += (code[end] in "([{") - (code[end] in ")]}")
            end += 1
        if end == len(code):
            raise fail(found.start(), "<<< without >>>")
        yield Edit(found.start(), found.end(), "->*::cuda_on_cpu::Launch(")
        yield Edit(end, end + 3, ")")


DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\((?P<alignment>[^()]*)\)\s*)?(?P<type>[^;=]*?)(?P<name>\w+)\s*\[\s*\]\s*;"
)


def _dynamic_shared(code: str, fail: Fail) -> Iterator[Edit]:
    for found in re.finditer(r"extern\s+__shared__", code):
        declaration = DYNAMIC_SHARED.match(code, found.start())
        if not declaration:
            raise fail(found.start(), "dynamic shared memory that is no array of unknown size")
        alignment = declaration["alignment"]
        if alignment and not (alignment.strip().isdecimal() and int(alignment) <= 16):
            raise fail(found.start(), f"dynamic shared memory aligned to {alignment}, more than 16 bytes")
        kind, name = declaration["type"].strip(), declaration["name"]
        text = f"{kind}* {name} = reinterpret_cast<{kind}*>(::cuda_on_cpu::dynamic_shared());"
        yield Edit(*declaration.span(), text)


def _static_shared(code: str, fail: Fail) -> Iterator[Edit]:
    for found in re.finditer(r"(?<!extern )(?:\bstatic\s+)?\b__shared__\b([^;{}]*);", code):
        if re.search(r"extern\s+$", code[: found.start()]):
            continue
        declaration = found[1]
        aligned = re.search(r"(?:__align__|alignas)\s*(\()", declaration)
        alignment = ""
        if aligned:
            end = _closing(declaration, aligned.start(1))
            alignment = f", {declaration[aligned.end() : end].strip()}"
            declaration = declaration[: aligned.start()] + declaration[end + 1 :]
        parts = re.fullmatch(r"\s*(?P<type>.*?)(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*)", declaration, re.DOTALL)
        several = "," in re.sub(r"<.*>|\(.*?\)|\[.*?\]", "", declaration, flags=re.DOTALL)
        if not parts or not parts["type"].strip() or "=" in declaration or several:
            raise fail(found.start(), "a shared variable that is not declared as `__shared__ type name[size];`")
        kind = f"{parts['type'].strip()}{''.join(parts['sizes'].split())}"
        key = "[]() -> const void* { static const char key = 0; return &key; }()"
        yield Edit(*found.span(), f"auto& {parts['name']} = ::cuda_on_cpu::shared<{kind}{alignment}>({key});")


def _launch_bounds(code: str, fail: Fail) -> Iterator[Edit]:
    """A kernel with __launch_bounds__ begins with a check of the number of threads."""
    for found in re.finditer(r"__launch_bounds__\s*(\()", code):
        end = _closing(code, found.start(1))
        name = re.compile(r"\s*(?:void\s+)?\w+\s*").match(code, end + 1)
        parameters = _closing(code, name.end()) if name and code[name.end()] == "(" else -1
        body = re.compile(r"\s*([{;])").match(code, parameters + 1)
        if parameters < 0 or not body:
            raise fail(found.start(), "__launch_bounds__ that is not between __global__ and the name of a kernel")
        if body[1] == "{":
            bounds = code[found.end() : end]
            yield Edit(body.end(), body.end(), f" ::cuda_on_cpu::check_launch_bounds(CUDA_ON_CPU_FIRST({bounds}));")


def _registration(code: str) -> Iterator[Edit]:
    for pattern, text in (
        (r"\bTORCH_LIBRARY_FRAGMENT\(detrx,", "TORCH_LIBRARY_FRAGMENT(detrx_emulated,"),
        (r"\bTORCH_LIBRARY_IMPL\(detrx, CUDA,", "TORCH_LIBRARY_IMPL(detrx_emulated, CPU,"),
        # The tensors are the CPU's, and count as the device's.
        (r"\.is_cpu\(\)", ".is_cuda()"),
        (r"\.is_cuda\(\)", ".is_cpu()"),
    ):
        for found in re.finditer(pattern, code):
            yield Edit(*found.span(), text)


def quoted_includes(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE)


def torch_includes(text: str) -> list[str]:
    """PyTorch's headers, which must not see the macros that stand for CUDA's keywords."""
    return [
        name
        for name in re.findall(r"^\s*#\s*include\s*<([^>]+)>", text, re.MULTILINE)
        if name.startswith(("ATen/", "c10/", "torch/")) and not name.startswith("c10/cuda/")
    ]


def closure(path: Path) -> list[Path]:
    """`path` and all files it includes by a relative path, each once."""
    files = [path.resolve()]
    for file in files:
        for name in quoted_includes(file.read_text()):
            included = (file.parent / name).resolve()
            if included.is_file() and included not in files:
                files.append(included)
    return files
