"""What is printed at the end, short enough for the tail of a log, and the one JSON of all stages."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .bars import evaluate
from .context import write_json
from .stages import STAGES

MERGED = "gpu_check.json"
SHOWN_MESSAGES, MESSAGE_LENGTH = 12, 300
SHOWN_ROWS = 18
# Columns of the tables that are printed, with shorter names; a column that no row has is left out.
COLUMNS = {
    "attention": {
        "shape": "shape",
        "batch": "B",
        "dtype": "dtype",
        "form": "form",
        **{
            f"{name} {label} ms": f"{short} {label}"
            for label in ("fwd", "fwd+bwd")
            for name, short in (
                ("detrx", "ms"),
                ("published", "publ."),
                ("grid_sample", "grid"),
                ("deformops triton", "d.tri"),
                ("deformops cuda", "d.cuda"),
                ("deformops eager", "d.eager"),
            )
        },
        "fwd expected ms": "exp. fwd",
        "fwd+bwd expected ms": "exp. f+b",
        "fwd of copy speed": "copy",
    },
    "decoder": {"dtype": "dtype", "one pass ms": "one pass ms", "three passes ms": "three", "times faster": "faster"},
    "experts": {
        "dtype": "dtype",
        "shape": "shape",
        **{f"{name} ms": f"{name} ms" for name in ("route", "dispatch", "combine", "fwd", "fwd+bwd")},
        **{f"{name} expected ms": f"{name} exp." for name in ("route", "dispatch", "combine")},
        "fwd+bwd loop/moe": "loop/moe",
        "fwd+bwd moe/dense": "moe/dense",
    },
    "routing": {
        "dtype": "dtype",
        "shape": "shape",
        "fwd ms": "fwd ms",
        "fwd expected ms": "exp.",
        "fwd ratio": "ratio",
    },
    "steps": {
        "training step": "training step",
        "ms": "ms",
        "images/s": "images/s",
        "times plain": "x plain",
        "peak GiB": "GiB",
        "matching %": "match %",
        "synchronisations": "waits",
    },
    "inference": {"model": "model", "dtype": "dtype", "compiler": "compiler", "median_ms": "ms", "p90_ms": "p90"},
    "trainings": {"variant": "variant", "seed": "seed", "bbox/AP": "AP", "last_loss": "loss"},
    "deterministic": {"dtype": "dtype", "atomic ms": "atomic ms", "deterministic ms": "deterministic ms"},
    "tools": {"tool": "tool", "findings": "findings", "launches": "launches"},
    "files": {"file": "file", "passed": "passed", "failed": "failed", "skipped": "skipped"},
}


def read_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """Reports of the stages that lie in a folder, in the order of the stages."""
    paths = {stage.name: folder / f"{stage.name}.json" for stage in STAGES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def merge(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the one JSON with all reports and bars."""
    reports = read_reports(folder)
    bars = [
        {"where": b.where, "value": b.value, "bar": f"{b.relation} {b.limit}", "met": b.met} for b in evaluate(reports)
    ]
    write_json(folder / MERGED, {"stages": reports, "bars": bars})
    return reports


def text(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables first, then failures, bars, and a line per stage: what matters most is last."""
    lines: list[str] = []
    for name, report in reports.items():
        for table, rows in report["tables"].items():
            if table in COLUMNS and rows:
                lines += [f"\n{name}: {table}", *format_table(rows[:SHOWN_ROWS], COLUMNS[table])]
                if len(rows) > SHOWN_ROWS:
                    lines.append(f"{len(rows) - SHOWN_ROWS} more rows in {name}.json")
    for name, report in reports.items():
        messages = [*(f"FAILED {each}" for each in report["failures"]), *(f"note: {each}" for each in report["notes"])]
        lines += [f"{name}: {each[:MESSAGE_LENGTH]}" for each in messages[:SHOWN_MESSAGES]]
        if len(messages) > SHOWN_MESSAGES:
            lines.append(f"{name}: {len(messages) - SHOWN_MESSAGES} more messages in {name}.json")
    bars = evaluate(reports)
    if any(report.get("device") == "cpu" for report in reports.values()):
        lines.append("\na rehearsal without a GPU: the figures mean nothing")
    lines.append(f"\nbars: {sum(bar.met for bar in bars)} of {len(bars)} met")
    lines += [*(str(bar) for bar in bars if not bar.met), ""]
    for name, report in reports.items():
        rows = sum(map(len, report["tables"].values()))
        lines.append(f"{name:<17} {report['status']:<12} {report.get('seconds', 0):6.1f} s  {rows} rows")
    return "\n".join(lines)


def format_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    keys = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cells = [[columns[key] for key in keys], *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
