#!/usr/bin/env python
"""Write MODEL_ZOO.md from the recorded studies in benchmarks/results/studies."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from detrx.analysis.study import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "studies"
PAGE = ROOT / "MODEL_ZOO.md"
HEADER = """# Model zoo

Written by `python tools/make_model_zoo.py` from the records in `benchmarks/results/studies`; every figure was measured
with the command above its table. AP is COCO AP in percent on 300 images of generated digits (`digits_val`, where a
study does not say otherwise), mean and sample standard deviation over seeds; parameters, GFLOPs (multiply-adds) and ms
(not measured everywhere) are those of inference with one image.
A few minutes of training on a CPU say which detector learns and what it costs, not which is best on COCO.
"""


def page(records: list[dict[str, Any]]) -> str:
    """The Markdown of all records."""
    parts = [HEADER]
    for record in records:
        threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)}"
        device = record["gpu"] or f"{record['cpu']}, {threads} of {record['cores']} cores"
        height, width = record["size"]
        parts.append(
            f"\n## {record['title']}\n\n{record['description']}\n\n    {record['command']}\n\n"
            f"{device}; Python {record['python']}, torch {record['torch']}; images of {height}x{width}.\n\n"
            + markdown_table(record)
        )
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=f"{__doc__} Exit status 1 with --check if the page is out of date.")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    args = parser.parse_args(argv)
    text = page([json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))])
    if not args.check:
        PAGE.write_text(text)
        print(f"model zoo: {PAGE}")
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit("error: MODEL_ZOO.md is out of date: run tools/make_model_zoo.py")


if __name__ == "__main__":
    main()
