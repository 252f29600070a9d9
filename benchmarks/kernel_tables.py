#!/usr/bin/env python3
"""The tables of docs/kernels.md: resources of the kernels, what the model expects of them, and what was measured.

Resources are those that benchmarks/kernel_resources.py wrote, measured figures those of the last `tools/gpu_check.py`
on a GPU, in benchmarks/results/gpu. Without arguments the tables are printed; with --write they are put into the page.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel_model import GPUS, RESOURCES, Estimate, attention_times, moe_times, routing_times

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "kernels.md"
MEASURED = ROOT / "benchmarks" / "results" / "gpu"
NOT_MEASURED = "Not measured yet: there has been no GPU so far."


def model_table() -> str:
    """Markdown: times and bounds of each operator, by shape and GPU."""
    gpus = [gpu.name for gpu in GPUS]
    head = [f"{gpu} {label}" for gpu in gpus for label in ("forward", "forward + backward")]
    lines = _head(["`ms_deform_attn_fused`", *head])
    for shape in ("encoder", "decoder300", "decoder900"):
        for batch in (1, 4, 16):
            for dtype in ("float32", "bfloat16"):
                pairs = [attention_times("fused", shape, batch, dtype, gpu) for gpu in GPUS]
                lines.append(_line(f"{shape} x {batch}, {dtype}", [each for pair in pairs for each in pair]))
    lines += ["", *_head(["others, bfloat16", *gpus])]
    for tokens in (900, 14400, 28800):
        each = [moe_times(tokens, 8, 2, 256, "bfloat16", gpu) for gpu in GPUS]
        for name in each[0]:
            lines.append(_line(f"`moe_{name}`, {tokens} tokens, 2 of 8 experts", [times[name] for times in each]))
    for batch, queries in ((2, 300), (2, 900), (16, 1800)):
        times = [routing_times(batch, queries, 256, "bfloat16", gpu) for gpu in GPUS]
        lines.append(_line(f"`query_route`, `gather`, `scatter`, half of {batch} x {queries}", times))
    return "\n".join(lines)


def _head(names: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|---|" + "--:|" * (len(names) - 1)]


def _line(name: str, estimates: Sequence[Estimate]) -> str:
    """Milliseconds, and what bounds them."""
    return f"| {name} | " + " | ".join(f"{each.ms:.3f} {each.bound}" for each in estimates) + " |"


def resource_table(resources: Mapping[str, Any]) -> str:
    """Markdown: registers and instructions of the kernels in float32 and bfloat16, those of attention for heads of 32
    channels."""
    lines = [
        f"Of the sources as of commit {resources['commit']}, compiled with nvcc {resources['nvcc']}:",
        "",
        "| kernel | registers | warps per SM | bytes spilled | instructions | in the hottest loop | per load there |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in resources["kernels"]:
        arguments = each["arguments"]
        numbers = [argument for argument in arguments if argument.isdecimal()]
        if (numbers and "32" not in numbers and each["family"] == "ms_deform_attn") or not _is_shown(arguments):
            continue
        loop = each["loop"]
        loads = sum(loop["global_loads"].values())
        per_load = f"{loop['instructions'] / loads:.1f}" if loads else "-"
        name = f"{each['family']} {each['kernel'].removesuffix('_kernel')}"
        name += f" {', '.join(arguments)}" if arguments else ""
        spilled = each["spill_stores"] + each["spill_loads"]
        lines.append(
            f"| {name} | {each['registers']} | {each['warps_per_sm']} | {spilled} | {each['instructions']} "
            f"| {loop['instructions']} | {per_load} |"
        )
    return "\n".join(lines)


def _is_shown(arguments: Sequence[str]) -> bool:
    types = [argument for argument in arguments if re.match(r"float|bfloat|uint", argument)]
    return not types or types[0] in ("float32", "bfloat16", "uint4")


def measured_tables(folder: Path) -> str:
    """Markdown: what the stages on a GPU measured, beside what the model expects; or that there is nothing."""
    parts = []
    if rows := _rows(folder, "speed", "attention") + _rows(folder, "tables", "attention"):
        parts.append(_attention_table(rows, _rows(folder, "deformops", "attention")))
    if rows := _rows(folder, "training", "steps"):
        columns = {"training step": "training step", "ms": "ms", "images/s": "images/s", "times plain": "times plain"}
        columns |= {"peak GiB": "peak GiB", "matching %": "% matching", "synchronisations": "waits for the device"}
        parts.append(_markdown(rows, columns))
    if rows := _rows(folder, "layers", "decoder"):
        columns = {"dtype": "decoder of Mr. DETR", "one pass ms": "one pass ms", "three passes ms": "three passes ms"}
        parts.append(_markdown(rows, columns | {"times faster": "times faster"}))
    if rows := _rows(folder, "inference", "inference"):
        columns = {
            "model": "model",
            "dtype": "dtype",
            "compiler": "compiler",
            "median_ms": "ms",
            "images_per_s": "images/s",
        }
        parts.append(_markdown(rows, columns))
    return "\n\n".join(parts) if parts else NOT_MEASURED


def _rows(folder: Path, stage: str, table: str) -> list[dict[str, Any]]:
    """Of a stage that ran on a GPU with real sizes."""
    path = folder / f"{stage}.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if report.get("device") != "cuda" or report.get("tiny"):
        return []
    gpu = report["machine"]["gpu"]
    return [{"gpu": gpu, **row} for row in report["tables"].get(table, [])]


def _attention_table(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    keys = ("shape", "batch", "dtype", "form")
    deformops = {tuple(row[key] for key in keys): row for row in others}
    seen, merged = set(), []
    for row in rows:
        key = tuple(row[each] for each in keys)
        if key in seen:  # both the short and the full table have it
            continue
        seen.add(key)
        rival = deformops.get(key, {})
        line = {"gpu": row["gpu"], "shape": f"{row['shape']} x {row['batch']}, {row['dtype']}, {row['form']}"}
        for label in ("fwd", "fwd+bwd"):
            ours = row[f"detrx {label} ms"]
            line |= {f"{label} ms": ours, f"{label} expected": row[f"{label} expected ms"]}
            if (published := row.get(f"published {label} ms")) is not None:
                line[f"{label} published"] = published / ours
            theirs = [
                value for name, value in rival.items() if re.fullmatch(rf"deformops \w+ {re.escape(label)} ms", name)
            ]
            if theirs:
                line[f"{label} deformops"] = min(theirs) / rival[f"detrx {label} ms"]
        merged.append(line)
    columns = {"gpu": "GPU", "shape": "shape"}
    for label, name in (("fwd", "forward"), ("fwd+bwd", "forward + backward")):
        columns |= {f"{label} ms": f"{name} ms", f"{label} expected": "expected ms"}
        columns |= {f"{label} published": "x published", f"{label} deformops": "x deformops"}
    return _markdown(merged, columns)


def _markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def tables(measured: Path = MEASURED) -> dict[str, str]:
    """By the name of their place in the page."""
    resources = json.loads(RESOURCES.read_text(encoding="utf-8"))
    return {
        "resources": resource_table(resources),
        "model": model_table(),
        "measured": measured_tables(measured),
    }


def place(text: str, content: Mapping[str, str]) -> str:
    """A page with every table between the two comments that name it."""
    for name, table in content.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no place for the table {name!r}: expected {begin} and {end}")
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.relative_to(ROOT)}")
    if parser.parse_args().write:
        DOCUMENT.write_text(place(DOCUMENT.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    else:
        print("\n\n".join(tables().values()))


if __name__ == "__main__":
    main()
