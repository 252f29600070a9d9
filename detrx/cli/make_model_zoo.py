"""Write MODEL_ZOO.md from the recorded studies in benchmarks/results/studies, and the papers' results and orderings."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detrx import config_zoo
from detrx.analysis.orderings import compare_all, read_orderings
from detrx.analysis.orderings_table import section
from detrx.analysis.study_record import markdown_table
from detrx.analysis.table import NOTHING, markdown
from detrx.cli._command import run_tool
from detrx.config_zoo.yaml_files import read_yaml
from detrx.errors import InvalidInputError

ROOT = config_zoo.config_root().parent
RECORDS = ROOT / "benchmarks" / "results" / "studies"
ORDERINGS = ROOT / "benchmarks" / "orderings.yaml"
PAPERS = ROOT / "benchmarks" / "results" / "papers.yaml"
PAGE = ROOT / "MODEL_ZOO.md"
HEADER = """# Model zoo

Written by `python tools/make_model_zoo.py`. The first section says which conclusions of the papers our results show.
The next ones have results measured with detrx, from the records in `benchmarks/results/studies`, each table with the
command that produced it. The last section has the results that the papers report.

In our tables, AP is COCO AP in percent on 300 images of generated digits (`digits_val`, unless a study says otherwise)
or on 67 photographs of playing cards, mean and sample standard deviation over seeds. Parameters, GFLOPs (multiply-adds)
and ms/image are those of inference with one image; the text below a table says with which weights and images. Columns
that nothing was recorded for are left out.
A few minutes of training on a CPU show which detector learns and what it costs, not which is best on COCO.
"""
PAPERS_HEADER = """
## Results of the papers, not ours

AP on the validation set (COCO: val2017) as reported by the papers (`benchmarks/results/papers.yaml`), with the config
that comes closest. None of these results was measured with detrx. Papers differ in batch size and details, so a
detector may have several results. "-": not stated in the source.
"""
FIGURES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
NEEDED = {"table": {"source", "where", "rows"}, "row": {"config", "backbone", "queries"}}
OPTIONAL = {"table": {"epochs"}, "row": {*FIGURES, "dataset", "metric", "note"}}


def page(orderings: str, records: list[dict[str, Any]], papers: list[dict[str, Any]]) -> str:
    """The Markdown of all records and of the papers' tables, after the section on the orderings."""
    parts = [HEADER, orderings]
    for record in records:
        threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)}"
        device = record["gpu"] or f"{record['cpu']}, {threads} of {record['cores']} cores"
        parts.append(
            f"\n## {record['title']}\n\n{record['description']}\n\n    {record['command']}\n\n"
            f"{device}; Python {record['python']}, torch {record['torch']}.\n\n" + markdown_table(record)
        )
    return "".join(parts) + PAPERS_HEADER + "".join(paper_tables(papers))


def read_papers(path: Path) -> list[dict[str, Any]]:
    """Read what papers report: tables with `source`, `where` and `rows`, optionally `epochs`. A row has `config`,
    `backbone`, `queries` and one or more of AP, AP50, AP75, AP_S, AP_M, AP_L, in percent; optionally `dataset`
    (default: COCO), `metric` if it is not the AP of boxes, and `note`.

    Raises:
        ValueError: the file is not such a list; names the row and the key.
        FileNotFoundError: a row names a config that does not exist.
    """
    tables = read_yaml(path)
    if not isinstance(tables, list) or not tables:
        raise InvalidInputError(f"{path} must be a list of tables, got {tables!r}")
    for number, table in enumerate(tables, start=1):
        _check_keys(table, "table", f"{path}, table {number}")
        where = f"{path}, {table['source']}, {table['where']}"
        if not isinstance(table["rows"], list) or not table["rows"]:
            raise InvalidInputError(f"{where}: rows must be a list of one or more, got {table['rows']!r}")
        for index, row in enumerate(table["rows"], start=1):
            _check_keys(row, "row", f"{where}, row {index}")
            config_zoo.find(row["config"])
            figures = {key: row[key] for key in FIGURES if key in row}
            if not figures or not all(isinstance(value, (int, float)) for value in figures.values()):
                raise InvalidInputError(
                    f"{where}, row {index}: one or more of {', '.join(FIGURES)} must be numbers, got {figures}"
                )
    return tables


def _check_keys(entry: Any, kind: str, where: str) -> None:
    needed, allowed = NEEDED[kind], NEEDED[kind] | OPTIONAL[kind]
    if not isinstance(entry, dict) or not needed <= entry.keys() <= allowed:
        found = sorted(entry) if isinstance(entry, dict) else repr(entry)
        raise InvalidInputError(
            f"{where} needs {sorted(needed)} and may have {sorted(allowed - needed)}; it has {found}"
        )


def paper_tables(papers: list[dict[str, Any]]) -> Iterator[str]:
    """A table for each source of `papers.yaml`."""
    for source, tables in itertools.groupby(papers, key=lambda table: table["source"]):
        rows = [_paper_row(table, row) for table in tables for row in table["rows"]]
        if any(row["metric"] != NOTHING for row in rows):
            rows = [{**row, "metric": row["metric"].replace(NOTHING, "AP")} for row in rows]
        yield f"\n### {source}\n\n{markdown(rows)}"


def _paper_row(table: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    figures = {key: f"{row[key]:.1f}" if key in row else NOTHING for key in FIGURES}
    return {
        "config": f"`{row['config']}`",
        "backbone": row["backbone"],
        "queries": str(row["queries"]),
        "dataset": row.get("dataset", "COCO"),
        "epochs": str(table.get("epochs", NOTHING)),
        "metric": row.get("metric", NOTHING),
        "AP (paper)": figures.pop("AP"),
        **figures,
        "where": "; ".join([table["where"], row["note"]] if "note" in row else [table["where"]]),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if the page is out of date"
    )
    run_tool(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    orderings = read_orderings(ORDERINGS)
    text = page(section(orderings, compare_all(orderings, RECORDS)), records, read_papers(PAPERS))
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"model zoo: {PAGE}")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("error: MODEL_ZOO.md is out of date: run tools/make_model_zoo.py")
