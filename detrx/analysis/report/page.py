"""The page: its sections, and the template that they fill."""

import datetime
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import detrx
from detrx.analysis.visualize import LEGEND
from detrx.atomic import write_atomically
from detrx.data.bad_files import BadFiles

from .curves_section import curves_section
from .detection_statistics import compute_statistics
from .detections import Absent
from .detections_section import detections_section
from .example_images import draw_examples
from .precision_section import precision_section
from .queries_section import queries_section
from .run_folder import RunFolder
from .run_section import config_facts, run_section
from .sources import Options, observe


def build_report(run: RunFolder, options: Options, bad: BadFiles | None = None) -> tuple[str, list[Absent]]:
    """Build the report of a run.

    Args:
        bad: gets the images that cannot be read; they are left out, and the page says so.

    Returns:
        The page as HTML, and the parts that are missing from it.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: a file named in the options cannot be used, or a file of
            the run is damaged.
    """
    bad = bad or BadFiles()
    threshold = options.score_threshold
    curves = (
        curves_section(run.metrics)
        if run.metrics
        else Absent(f"There is no metrics.json in {run.path}, so nothing was logged.", run.command())
    )
    observed = observe(run, options, bad)
    found = observed.detections
    figures = found if isinstance(found, Absent) else compute_statistics(found, threshold)
    examples = figures if isinstance(figures, Absent) else draw_examples(figures, threshold, bad)
    detections = figures if isinstance(figures, Absent) else detections_section(figures, examples)
    ap = precision_section(run, figures, f"{threshold:g}")
    queries = observed.queries if isinstance(observed.queries, Absent) else queries_section(observed.queries)
    config = config_facts(run) if run.config else Absent(f"There is no config.yaml in {run.path}.")
    context = {
        **run_section(run, ap),
        "config": config,
        "curves": curves,
        "ap": ap,
        "detections": detections,
        "queries": queries,
        "unreadable": [each.encode("utf-8", "backslashreplace").decode() for each in bad.errors],
        "threshold": f"{threshold:g}",
        "legend": LEGEND,
        "version": detrx.__version__,
        "written": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
    }
    missing = [each for each in (config, curves, *ap["absent"], found, examples, queries) if isinstance(each, Absent)]
    return render(context), list(dict.fromkeys(missing))


def render(context: dict[str, Any]) -> str:
    """Fill the template; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = resources.files(__package__) / "templates"
    environment.tests["absent"] = lambda part: isinstance(part, Absent)
    style, charts, page = (
        Markup((folder / name).read_text(encoding="utf-8")) for name in ("style.css", "charts.js", "page.js")
    )
    scripts = [Markup(get_plotlyjs()), charts, page]
    return environment.get_template("report.html").render(style=style, scripts=scripts, **context)


def write_report(run: RunFolder, options: Options, file: Path, bad: BadFiles | None = None) -> Sequence[Absent]:
    """Write the report of a run to a file, and return the parts that are missing from it. Arguments and errors are
    those of `build_report`."""
    page, missing = build_report(run, options, bad)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda stream: stream.write(page.encode()))
    return missing
