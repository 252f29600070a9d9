"""compute-sanitizer on small launches of all kernels."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .context import Context

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PROGRAM = Path(__file__).with_name("sanitized.py")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards? displayed)")
OURS = re.compile(r"^=+\s+at .*\bdetrx::", re.MULTILINE)  # the line of a finding that tells the kernel
SHOWN = 60  # lines of findings that are kept


def run(context: Context) -> None:
    sanitizer = find_sanitizer()
    context.report.fact(sanitizer=sanitizer)
    if context.device != "cuda":
        check(context, "without compute-sanitizer", [])
        return
    if sanitizer is None:
        context.report.note("compute-sanitizer was not found: on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin")
        return
    usage = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, encoding="utf-8").stdout
    with ThreadPoolExecutor(2) as pool:
        pending = []
        for tool in TOOLS:
            # PyTorch asks the driver for things that fail, on purpose.
            command = [sanitizer, "--tool", tool]
            command += ["--report-api-errors", "no"] if tool == "memcheck" else []
            # initcheck has to see what other kernels write; what it finds in them does not count.
            command += ["--print-limit", "100000"] if tool == "initcheck" else name_filter(usage)
            pending.append(pool.submit(check, context, tool, command))
        for done in as_completed(pending):
            done.result()


def find_sanitizer() -> str | None:
    places = [os.environ.get("PATH", ""), *(f"{os.environ[k]}/bin" for k in ("CUDA_HOME",) if os.environ.get(k))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([*places, "/usr/local/cuda/bin"]))


def name_filter(usage: str) -> list[str]:
    """The option by which this version watches only the kernels of detrx."""
    for option in ("--kernel-name", "--kernel-regex", "--filter"):
        if re.search(rf"{option}\b(?!-)", usage):
            return [option, "kns=detrx"]
    return []


def check(context: Context, tool: str, command: list[str]) -> None:
    """Run the program, under `command`, and report what the tool found."""
    only_ours = tool == "initcheck"
    folder = str(PROGRAM.parents[1])
    paths = [folder, str(PROGRAM.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Every tensor is an allocation of its own, so that its end is known.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(paths)}
    program = [*command, sys.executable, str(PROGRAM), context.device]
    program += ["query_routing", "moe"] if context.tiny else []
    try:
        result = subprocess.run(
            program,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(context.left() - 2, 1),
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        lines = findings(output, only_ours)
        context.report.row("tools", {"tool": tool, "findings": "out of time", "launches": launched(output)})
        if lines:
            context.report.fail(f"{tool}: " + "\n".join(lines))
        else:
            context.report.note(f"{tool}: out of time after {launched(output)} launches, none of them with a finding")
        return
    output = result.stdout + result.stderr
    print(f"--- {tool}\n{output}", flush=True)
    count = finding_count(output, only_ours) if command else 0
    context.report.row("tools", {"tool": tool, "findings": count, "launches": launched(output)})
    if count:
        context.report.fail(f"{tool}: {count} findings\n" + "\n".join(findings(output, only_ours)))
    elif count is None or result.returncode:
        context.report.fail(f"{tool}: ended with {result.returncode} and no summary: {output[-600:]}")


def finding_count(output: str, only_ours: bool = False) -> int | None:
    """What the tool's last line says, or how many findings are in kernels of detrx; None without a last line."""
    found = SUMMARY.findall(output)
    if not found:
        return None
    return len(OURS.findall(output)) if only_ours else int(found[-1])


def findings(output: str, only_ours: bool = False) -> list[str]:
    """The first lines of what the tool found, in all kernels or in those of detrx, without the stack of the host."""
    lines = [line for line in output.splitlines() if line.startswith("=========") and line.strip("= ")]
    lines = [
        line for line in lines if not re.search(r"COMPUTE-SANITIZER|SUMMARY|Host Frame|Saved host backtrace", line)
    ]
    if only_ours:  # a finding has further lines, which are indented
        starts = [i for i, line in enumerate(lines) if not line.startswith("=========  ")]
        parts = [lines[begin:end] for begin, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
        lines = [line for part in parts if OURS.search("\n".join(part)) for line in part]
    return lines[:SHOWN]


def launched(output: str) -> int:
    return sum(line.startswith("launch:") for line in output.splitlines())
