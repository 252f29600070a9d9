"""Runs the stages, each in a process of its own and no longer than it may."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from . import summary
from .context import Context, Report, write_json
from .stages import STAGES, Stage, allotted, groups, named

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.py"
OUTPUT = Path(__file__).resolve().parents[1] / "results" / "gpu"
GRACE = 5  # seconds between the request to end and the end
EPILOGUE = 3  # seconds for the summary
TAIL = 25  # lines of a failed stage that are printed


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py",
        description="Tests and measures the kernels and detectors on a GPU, in stages, most important first. Every "
        "stage runs in a process of its own and writes what it finds as soon as it has it, so that a run that was cut "
        "off still counts; a summary is printed last.",
        epilog="stages: " + "; ".join(f"{s.name} (call {s.call}): {s.about}" for s in STAGES),
    )
    parser.add_argument("--call", type=int, choices=(1, 2), help="only the stages of this call (default: all)")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, metavar="NAME", help="only these stages")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="of everything (default: 285 for each call that is run)"
    )
    parser.add_argument("--out", type=Path, default=OUTPUT, metavar="FOLDER", help=f"default: {OUTPUT}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to rehearse")
    parser.add_argument("--tiny", action="store_true", help="sizes at which figures mean nothing, to rehearse")
    parser.add_argument("--summary", action="store_true", help="only print the summary of what lies in --out")
    parser.add_argument("--stage-process", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.budget is not None and args.budget <= 0:
        parser.error(f"--budget {args.budget:g}: expected a positive number of seconds")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage_process:
        return run_stage(args)
    if args.summary:
        print(summary.text(summary.merge(args.out)))
        return 0
    chosen = [s for s in STAGES if args.call in (None, s.call) and (args.stages is None or s.name in args.stages)]
    if not chosen:
        raise SystemExit(f"--call {args.call} has none of the stages {' '.join(args.stages)}")
    budget = args.budget or 285 * len({stage.call for stage in chosen})
    Run(args, chosen, budget).run()
    reports = summary.merge(args.out)
    print(summary.text(reports), flush=True)
    wanted = [reports[stage.name] for stage in chosen if stage.name in reports]
    return 0 if len(wanted) == len(chosen) and all(report["status"] == "ok" for report in wanted) else 1


class Run:
    def __init__(self, args: argparse.Namespace, stages: Sequence[Stage], budget: float):
        self.args, self.groups = args, groups(stages)
        self.start = time.monotonic()
        self.deadline = self.start + budget - EPILOGUE
        self.log = args.out / "log.txt"
        self.log.write_text("", encoding="utf-8")

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        for place, group in enumerate(self.groups):
            remaining = self.deadline - time.monotonic() - GRACE
            seconds = allotted(remaining, group, self.groups[place + 1 :])
            processes: dict[Stage, subprocess.Popen] = {}
            try:
                for stage in group:
                    if seconds[stage.name]:
                        processes[stage] = self.begin(stage, seconds[stage.name])
                    else:
                        self.skip(stage, remaining)
                begun = time.monotonic()
                for stage, process in processes.items():
                    self.wait(stage, process, begun, seconds[stage.name])
            finally:
                for process in processes.values():
                    kill(process, signal.SIGKILL)  # and what it left running

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.1f} s] {text}", flush=True)

    def skip(self, stage: Stage, remaining: float) -> None:
        self.say(f"{stage.name}: skipped, it needs {stage.least:g} s and {max(remaining, 0):.0f} s are left")
        content = Report(self.args.out / f"{stage.name}.json", stage.name).content
        write_json(self.args.out / f"{stage.name}.json", content | {"status": "skipped"})

    def begin(self, stage: Stage, seconds: float) -> subprocess.Popen:
        (self.args.out / f"{stage.name}.json").unlink(missing_ok=True)
        command = [sys.executable, str(SCRIPT), "--stage-process", stage.name, "--seconds", f"{seconds:.1f}"]
        command += ["--out", str(self.args.out), "--device", self.args.device]
        command += ["--tiny"] if self.args.tiny else []
        self.say(f"{stage.name}: {stage.about} (at most {seconds:.0f} s)")
        with self.log.open("a", encoding="utf-8") as log:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        return process

    def wait(self, stage: Stage, process: subprocess.Popen, begun: float, seconds: float) -> None:
        in_time = True
        try:
            code = process.wait(max(begun + seconds - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            in_time = False
            kill(process, signal.SIGTERM)
            try:
                code = process.wait(GRACE)
            except subprocess.TimeoutExpired:
                kill(process, signal.SIGKILL)
                code = process.wait()
        self.close(stage, code, in_time, time.monotonic() - begun)

    def close(self, stage: Stage, code: int, in_time: bool, seconds: float) -> None:
        """What the parent knows goes into the report: how the process ended, and how long it took."""
        path = self.args.out / f"{stage.name}.json"
        (self.args.out / f".{path.name}.tmp").unlink(missing_ok=True)  # of a process that was killed while it wrote
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else Report(path, stage.name).content
        if not in_time:
            content["status"] = "out of time"
        elif content["status"] == "running":
            content["status"] = "crashed"
            content["failures"].append(f"the process ended with {code}")
        content["seconds"] = round(seconds, 1)
        write_json(path, content)
        rows = sum(map(len, content["tables"].values()))
        self.say(f"{stage.name}: {content['status']} after {seconds:.1f} s, {rows} rows")
        if content["status"] == "crashed":
            print("\n".join(self.log.read_text(errors="replace", encoding="utf-8").splitlines()[-TAIL:]), flush=True)


def kill(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a stage and all that it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def run_stage(args: argparse.Namespace) -> int:
    """The process of one stage."""
    stage = named(args.stage_process)
    deadline = time.monotonic() + args.seconds
    report = Report(args.out / f"{stage.name}.json", stage.name, device=args.device, tiny=args.tiny)
    print(f"===== {stage.name}", flush=True)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            context = Context(args.device, args.tiny, deadline, Path(scratch), report)
            from detrx.collect_env import machine

            report.content["machine"] = machine(args.device)
            importlib.import_module(stage.module).run(context, **stage.options)
    except Exception:
        report.fail(traceback.format_exc()[-3000:])
    report.finish()
    return 0
