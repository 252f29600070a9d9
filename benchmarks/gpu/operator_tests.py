"""The GPU tests of the operators, each file in a process of its own: a broken device context ends only that one."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from xml.etree import ElementTree

from .context import Context

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 40  # failures of a file whose messages are kept


def run(context: Context) -> None:
    files = test_files(ROOT / "tests")
    if context.tiny:
        files = files[-1:]
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(run_file, context, file) for file in files]
        for done in as_completed(pending):
            row, messages = done.result()
            if messages or any(row[key] for key in ("passed", "failed", "skipped")):
                context.report.row("files", row)
            for message in messages:
                context.report.fail(message)
    if context.device == "cuda" and not any(row["passed"] for row in context.report.content["tables"].get("files", [])):
        context.report.fail("no test passed on the GPU")


def test_files(folder: Path) -> list[Path]:
    """The files that may have tests for a GPU: they name the mark, or the conftest.py beside them does."""

    def names_the_mark(path: Path) -> bool:
        return path.is_file() and "pytest.mark.gpu" in path.read_text(encoding="utf-8")

    return [
        path
        for path in sorted(folder.rglob("test_*.py"))
        if names_the_mark(path) or names_the_mark(path.with_name("conftest.py"))
    ]


def run_file(context: Context, file: Path) -> tuple[dict[str, object], list[str]]:
    """Row of the table, and what failed."""
    name = str(file.relative_to(ROOT))
    report = context.scratch / f"{file.stem}.xml"
    command = [sys.executable, "-m", "pytest", str(file), "-m", "gpu", "-q", "--tb=short", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(context.left(), 1),
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired as error:
        print(_text(error.stdout))
        return {"file": name, "passed": 0, "failed": 0, "skipped": 0}, [f"{name}: out of time"]
    print(result.stdout, result.stderr, flush=True)
    if not report.is_file():
        return (
            {"file": name, "passed": 0, "failed": 0, "skipped": 0},
            [f"{name}: pytest ended with {result.returncode}: {(result.stdout + result.stderr)[-400:]}"],
        )
    return read_report(name, report, result.returncode)


def read_report(name: str, report: Path, code: int) -> tuple[dict[str, object], list[str]]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    row: dict[str, object] = {"file": name, "passed": counts["tests"] - failed - counts["skipped"], "failed": failed}
    row |= {"skipped": counts["skipped"], "seconds": float(suite.get("time", 0))}
    messages = []
    for case in suite.iter("testcase"):
        for problem in (*case.findall("failure"), *case.findall("error")):
            messages.append(f"{name}::{case.get('name')}: {problem.get('message', '')[:300]}")
    if len(messages) > SHOWN:
        messages[SHOWN:] = [f"{name}: {len(messages) - SHOWN} more failures"]
    if code not in (0, 1, 5) and not messages:  # 1: failures, 5: no tests
        messages.append(f"{name}: pytest ended with {code}")
    return row, messages


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
