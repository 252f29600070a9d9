#!/usr/bin/env python
"""Writes docs/api.md, the public API, from the packages' `__all__` and docstrings.

python docs/list_api.py           write it
python docs/list_api.py --check   only say whether it is out of date
"""

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).resolve().parent / "api.md"
STABLE = ("detrx", "detrx.model_zoo", "detrx.errors", "detrx.d2.config", "detrx.d2.data", "detrx.d2.structures")
PROVISIONAL = (
    *("detrx.modeling", "detrx.layers", "detrx.ops", "detrx.data", "detrx.evaluation", "detrx.engine"),
    *("detrx.checkpoint", "detrx.export", "detrx.analysis", "detrx.analysis.report", "detrx.analysis.queries"),
    *("detrx.analysis.attention", "detrx.analysis.attention_figure"),
    *("detrx.projects.h_detr", "detrx.projects.mr_detr", "detrx.projects.qr_detr", "detrx.projects.paq_detr"),
    "detrx.projects.d3etr",
)
HEADER = """# Public API

Written by `python docs/list_api.py` from the packages themselves.

| | what it means |
|---|---|
| **stable** | Names, arguments and results stay; what goes works for one minor version more, with a warning. |
| **provisional** | May change from one minor version to the next until detrx 1.0. The release notes list the changes. |
| internal | Whatever is not on this page. May change at any time. |

Stable as well: the options of the commands in `tools/`, the names of the model zoo, the keys of configs in
`configs/common/train.py`, and the formats of checkpoints and of `config.yaml` (names that have moved are listed in
`detrx/engine/renamed.py`). `detrx.d2.<area>` has Detectron2's names and signatures; listed are the areas that your own
configs and scripts need.
"""


def first_sentence(documented: Any) -> str:
    """The first sentence of a docstring, on one line; "" without a docstring of its own."""
    if not (inspect.ismodule(documented) or inspect.isclass(documented) or inspect.isroutine(documented)):
        return ""
    text = (documented.__doc__ or "").strip().split("\n\n")[0]
    line = " ".join(text.split())
    end = line.find(". ")
    return line if end < 0 else line[: end + 1]


def public(module: ModuleType) -> list[str]:
    """The public names of a module: `__all__`, else its own classes and functions."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n
            for n, v in vars(module).items()
            if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
        ]
    return sorted(names, key=str.lower)


def section(name: str, stability: str) -> str:
    module = importlib.import_module(name)
    lines = [f"\n## `{name}` — {stability}\n", first_sentence(module), ""]
    # The docstrings of Detectron2's objects are not ours, and differ between the providers.
    described = not name.startswith("detrx.d2")
    if not described:
        return "\n".join([*lines, ", ".join(f"`{each}`" for each in public(module)), ""])
    lines += ["| name | |", "|---|---|"]
    lines += [f"| `{each}` | {first_sentence(getattr(module, each))} |" for each in public(module)]
    return "\n".join([*lines, ""])


def page() -> str:
    parts = [section(name, "stable") for name in STABLE] + [section(name, "provisional") for name in PROVISIONAL]
    return HEADER + "".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write docs/api.md, the public API.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is out of date")
    args = parser.parse_args(argv)
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"API: {PAGE}")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("error: docs/api.md is out of date: run docs/list_api.py")


if __name__ == "__main__":
    main()
