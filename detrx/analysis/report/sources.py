"""Where a report's detections and query figures come from: the run's last evaluation, or its checkpoint."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from detrx.data.bad_files import BadFiles
from detrx.engine.config import load_config
from detrx.errors import user_message

from .detections import Absent, Dataset, Detections, load_dataset, read_detections, run_model
from .run_folder import RunFolder, config_file_of

RESULTS = ("coco_instances_results.json", "lvis_instances_results.json")
"""Files that evaluations write to the folder `inference` of a run."""


@dataclass(frozen=True)
class Options:
    """What goes into a report.

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
    """Detections and figures on queries, either of which may be absent."""

    detections: Detections | Absent
    queries: dict[str, Any] | Absent


def observe(run: RunFolder, options: Options, bad: BadFiles) -> Observed:
    """Read the detections of the last evaluation, or run the model if there are none. Query figures need the model.
    Images that it cannot be run on go into `bad`."""
    files = [options.results] if options.results else [run.path / "inference" / name for name in RESULTS]
    file = next((file for file in files if file.is_file()), files[0])
    again = command(run, options)
    if not run.test_datasets and options.config_file is None:
        why = f"The test dataset is unknown: {run.path}/config.yaml has no dataloader.test.dataset.names."
        absent = Absent(why, f"{command(run, options, model=True)} --config-file FILE")
        return Observed(absent, absent)
    try:
        cfg = load_config(options.config_file or str(config_file_of(run.path)), list(options.overrides))
        names = cfg.dataloader.test.dataset.names
        dataset = load_dataset(names if isinstance(names, str) else names[0], _max_dets(cfg))
    except Exception as error:
        absent = _excused(error, "The test dataset cannot be read", again, asked=bool(options.config_file))
        return Observed(absent, absent)
    stored = read_detections(file, dataset) if options.results or file.is_file() else None
    of_model = _of_model(run, options, cfg, dataset, bad)
    detections = stored or of_model.detections
    return Observed(detections, of_model.queries)


def _max_dets(cfg: Any) -> int:
    """The number of detections per image that the config's evaluation counts."""
    evaluator = cfg.dataloader.get("evaluator")
    asked = evaluator.get("max_dets_per_image") if isinstance(evaluator, DictConfig) else None
    return 100 if asked is None else asked


def _of_model(run: RunFolder, options: Options, cfg: Any, dataset: Dataset, bad: BadFiles) -> Observed:
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
        dataset = dataset.first(options.num)
        return Observed(*run_model(cfg, weights, options.device, dataset, options.score_threshold, bad))
    except Exception as error:
        absent = _excused(error, f"{weights.name} cannot be run", command(run, options), options.weights is not None)
        return Observed(absent, absent)


def _excused(error: Exception, what: str, again: str, asked: bool) -> Absent:
    """The part that is missing because of a mistake of the user. Any other error is raised again, and so is an error in
    what the user asked for."""
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
