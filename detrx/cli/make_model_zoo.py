"""Write MODEL_ZOO.md from the recorded studies in benchmarks/results/studies and the papers' results."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from detrx import config_zoo
from detrx.analysis.study import markdown_table

ROOT = config_zoo.config_root().parent
RECORDS = ROOT / "benchmarks" / "results" / "studies"
PAPERS = ROOT / "benchmarks" / "results" / "papers.yaml"
PAGE = ROOT / "MODEL_ZOO.md"
HEADER = """# Model zoo

Written by `python tools/make_model_zoo.py`. The first part has results measured with detrx, from the records in
`benchmarks/results/studies`, each table with the command that produced it. The last section has the results that the
papers report on COCO.

In our tables, AP is COCO AP in percent on 300 images of generated digits (`digits_val`, unless a study says otherwise),
mean and sample standard deviation over seeds. Parameters, GFLOPs (multiply-adds) and ms (not always measured) are those
of inference with one image.
A few minutes of training on a CPU show which detector learns and what it costs, not which is best on COCO.
"""
PAPERS_HEADER = """
## Results of the papers on COCO, not ours

AP on COCO val2017 as reported by the papers (`benchmarks/results/papers.yaml`), with the config that comes closest.
None of these results was measured with detrx. Papers differ in batch size and details, so a detector may have several
results. "-": not stated in the source.
"""


def page(records: list[dict[str, Any]], papers: list[dict[str, Any]]) -> str:
    """The Markdown of all records and of the papers' tables."""
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
    return "".join(parts) + PAPERS_HEADER + "".join(paper_tables(papers))


def paper_tables(papers: list[dict[str, Any]]) -> Iterator[str]:
    """A table for each source of `papers.yaml`.

    Raises:
        FileNotFoundError: a row names a config that does not exist.
    """
    for source, tables in itertools.groupby(papers, key=lambda table: table["source"]):
        yield f"\n### {source}\n\n| config | backbone | queries | epochs | AP (paper) | AP50 | AP75 | where |\n"
        yield "|---|---|---|---|---|---|---|---|\n"
        for table in tables:
            for row in table["rows"]:
                config_zoo.find(row["config"])
                scores = " | ".join(f"{row[key]:.1f}" if key in row else "-" for key in ("AP", "AP50", "AP75"))
                where = "; ".join([table["where"], row["note"]] if "note" in row else [table["where"]])
                schedule = f"{row['backbone']} | {row['queries']} | {table.get('epochs', '-')}"
                yield f"| `{row['config']}` | {schedule} | {scores} | {where} |\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if the page is out of date"
    )
    args = parser.parse_args(argv)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    text = page(records, yaml.safe_load(PAPERS.read_text(encoding="utf-8")))
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"model zoo: {PAGE}")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("error: MODEL_ZOO.md is out of date: run tools/make_model_zoo.py")
