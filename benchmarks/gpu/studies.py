"""Trainings of a study on digits, side by side on the GPU, as many as finish in the time that is left."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from .context import Context

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "benchmarks" / "studies" / "one_to_many_digits.yaml"
TOOL = ROOT / "tools" / "study.py"


def run(context: Context, study: Path = STUDY, seeds: tuple[int, ...] = (1, 2, 3), tool: Path = TOOL) -> None:
    content = yaml.safe_load(study.read_text(encoding="utf-8"))
    variants = list(content["variants"])
    if context.tiny:
        variants, seeds = variants[:1], seeds[:1]
        for trained in (content, *content.get("prepare", ())):
            trained["overrides"] = [*trained.get("overrides", ()), "train.max_iter=2", "train.eval_period=2"]
    here = context.scratch / study.name
    here.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    output = context.scratch / "study"
    jobs = 1 if context.tiny else min(max((os.cpu_count() or 2) // 2, 1), len(variants) * len(seeds))
    context.report.fact(study=study.stem, jobs=jobs)
    command = [sys.executable, str(tool), str(here), "--output", str(output), "--jobs", str(jobs), "--threads", "1"]
    command += [
        "--device",
        context.device,
        "--images",
        "1",
        "--rounds",
        "0",
        "--seeds",
        *map(str, seeds),
        "--variants",
        *variants,
    ]
    process = subprocess.Popen(command, cwd=context.scratch)  # where it prepares what the study begins with
    seen: set[Path] = set()
    while process.poll() is None and context.left() > 5:
        time.sleep(0.5)
        report_finished(context, output, seen)
    if process.poll() is None:  # it ends with this stage, whose processes are one group
        context.report.note(f"out of time: {len(seen)} of {len(variants) * len(seeds)} trainings are finished")
    elif process.returncode:
        context.report.fail(f"{tool.name} ended with {process.returncode}: see the log")
    report_finished(context, output, seen)


def report_finished(context: Context, output: Path, seen: set[Path]) -> None:
    for path in sorted(output.glob("*/seed*/result.json")):
        if path not in seen:
            seen.add(path)
            stored = json.loads(path.read_text(encoding="utf-8"))
            row = {"variant": path.parent.parent.name, "seed": stored["run"]["seed"], **stored["result"]}
            context.report.row("trainings", row)
