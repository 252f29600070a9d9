"""The parts of the report, and the page that they make."""

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import detrx
from detrx.analysis.visualize import LEGEND
from detrx.engine.config import load_config
from detrx.errors import user_message

from .curves_section import draw_curves
from .detection_statistics import break_down
from .detections import Absent, Dataset, Detections, load_dataset, read_detections, run_model
from .detections_section import detections_part
from .example_images import draw_sheets
from .precision_section import ap_part
from .queries_section import queries_part
from .run_folder import RunFolder
from .run_section import config_facts, summary_part

RESULTS = ("coco_instances_results.json", "lvis_instances_results.json")
"""What evaluations leave in the folder `inference` of a run."""


@dataclass(frozen=True)
class Options:
    """What a report is made of.

    Attributes:
        config_file: config of the model; None: `config.yaml` of the run.
        overrides: changes to it.
        weights: checkpoint; None: `model_final.pth` of the run.
        results: file of detections in COCO's format; None: that of the run's evaluation, if there is one.
        num: the model is run on so many images, the first of the test dataset.
        score_threshold: least score of detections that are drawn and counted.
        use_model: whether the model may be run.
        device: "cpu", "cuda", ...; "auto": a GPU if there is one.
    """

    config_file: str | None = None
    overrides: tuple[str, ...] = ()
    weights: Path | None = None
    results: Path | None = None
    num: int = 200
    score_threshold: float = 0.3
    use_model: bool = True
    device: str = "auto"


@dataclass(frozen=True)
class Observed:
    """What is known of detections and queries: either may be absent."""

    detections: Detections | Absent
    queries: dict[str, Any] | Absent


def build_report(run: RunFolder, options: Options) -> tuple[str, list[Absent]]:
    """The report of a run as HTML, and the parts that are missing in it.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: a file that the options name cannot be used, or the results of
            the run are damaged.
    """
    threshold = options.score_threshold
    curves = (
        draw_curves(run.metrics)
        if run.metrics
        else Absent(f"There is no metrics.json in {run.path}: nothing of the training was logged there.", run.command())
    )
    observed = observe(run, options)
    found = observed.detections
    figures = found if isinstance(found, Absent) else break_down(found, threshold)
    sheets = found if isinstance(found, Absent) else draw_sheets(found, figures, threshold)
    ap = ap_part(run, found, figures, f"{threshold:g}")
    queries = observed.queries if isinstance(observed.queries, Absent) else queries_part(observed.queries)
    config = config_facts(run) if run.config else Absent(f"There is no config.yaml in {run.path}.")
    context = {
        **summary_part(run, ap),
        "config": config,
        "curves": curves,
        "ap": ap,
        "detections": found if isinstance(found, Absent) else detections_part(found, figures, sheets),
        "queries": queries,
        "threshold": f"{threshold:g}",
        "legend": LEGEND,
        "version": detrx.__version__,
        "written": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
    }
    missing = [each for each in (config, curves, *ap["absent"], found, sheets, queries) if isinstance(each, Absent)]
    return render(context), list(dict.fromkeys(missing))


def render(context: dict[str, Any]) -> str:
    """Fill the template; every text is escaped."""
    folder = resources.files(__package__) / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["absent"] = lambda part: isinstance(part, Absent)
    style, charts, page = (
        Markup((folder / name).read_text(encoding="utf-8")) for name in ("style.css", "charts.js", "page.js")
    )
    scripts = [Markup(get_plotlyjs()), charts, page]
    return environment.get_template("report.html").render(style=style, scripts=scripts, **context)


def observe(run: RunFolder, options: Options) -> Observed:
    """Detections from the file of an evaluation, or of the model; what queries do only the model tells."""
    files = [options.results] if options.results else [run.path / "inference" / name for name in RESULTS]
    file = next((file for file in files if file.is_file()), files[0])
    again = command(run, options)
    if not run.test_datasets and options.config_file is None:
        why = f"No config tells the test dataset: there is no dataloader.test.dataset.names in {run.path}/config.yaml."
        absent = Absent(why, f"{command(run, options, model=True)} --config-file FILE")
        return Observed(absent, absent)
    try:
        cfg = load_config(options.config_file or str(run.path / "config.yaml"), list(options.overrides))
        names = cfg.dataloader.test.dataset.names
        dataset = load_dataset(names if isinstance(names, str) else names[0])
    except Exception as error:
        absent = _excused(error, "The test dataset cannot be read", again, asked=bool(options.config_file))
        return Observed(absent, absent)
    stored = read_detections(file, dataset) if options.results or file.is_file() else None
    of_model = _of_model(run, options, cfg, dataset)
    detections = stored or of_model.detections
    return Observed(detections, of_model.queries)


def _of_model(run: RunFolder, options: Options, cfg: Any, dataset: Dataset) -> Observed:
    weights = options.weights or run.path / "model_final.pth"
    if not options.use_model:
        absent = Absent("The model was not run (--no-model).", command(run, options, model=True))
        return Observed(absent, absent)
    if options.weights is not None and not weights.is_file():
        raise FileNotFoundError(f"checkpoint {weights} does not exist")
    if not weights.is_file():
        checkpoints = sorted(file.name for file in run.path.glob("model_*.pth"))
        why = f"There is no {weights.name} in {run.path}" + (f", but {', '.join(checkpoints)}." if checkpoints else ".")
        example = run.path / (checkpoints[-1] if checkpoints else "FILE")
        absent = Absent(why, f"{command(run, options, model=True)} --weights {shlex.quote(str(example))}")
        return Observed(absent, absent)
    try:
        return Observed(*run_model(cfg, weights, options.device, dataset.first(options.num), options.score_threshold))
    except Exception as error:
        absent = _excused(error, f"{weights.name} cannot be run", command(run, options), options.weights is not None)
        return Observed(absent, absent)


def _excused(error: Exception, what: str, again: str, asked: bool) -> Absent:
    """A part that is missing for a reason that the user can mend; raises the error if it is a bug, or of something that
    was asked for."""
    message = user_message(error)
    if message is None or asked:
        raise error
    return Absent(f"{what}: {message}", again)


def command(run: RunFolder, options: Options, model: bool = False) -> str:
    """The command that makes this report, with `model` also running the model."""
    parts = ["python", "tools/report.py", str(run.path)]
    parts += ["--config-file", options.config_file] if options.config_file else []
    parts += ["--no-model"] if not (options.use_model or model) else []
    return shlex.join([*parts, *options.overrides])


def write_report(run: RunFolder, options: Options, file: Path) -> Sequence[Absent]:
    """Write the report of a run to a file; returns the parts that are missing in it. Raises as `build_report` does."""
    page, missing = build_report(run, options)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    return missing
