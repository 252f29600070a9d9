"""Runs of a study: training them, and measuring what the trained models cost."""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iopath.common.file_io import file_lock
from omegaconf import ListConfig

from detrx.atomic import write_atomically
from detrx.d2.data import MetadataCatalog
from detrx.engine import load_config, load_model
from detrx.engine.output_folder import TRAINING_CONFIG
from detrx.engine.settings import changed_settings, describe_changes, saved_config
from detrx.errors import UserError
from detrx.evaluation import evaluate_file
from detrx.evaluation.nms import AP_NMS

from .cost import evaluation_images, model_cost
from .metrics import METRICS_FILE, read_metrics
from .study import Preparation, Run, Training
from .study_processes import run_process

TRAIN = (sys.executable, "-m", "detrx.cli", "lazyconfig_train_net")
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")
"""What every evaluation gives."""
_PRECISIONS = re.compile(rf"bbox/(AP(\d+|[smlrcf])?|{AP_NMS})")
_TIMES = {"step_seconds": "time", "data_seconds": "data_time"}
_DETECTIONS = ("coco_instances_results.json", "lvis_instances_results.json")
_WORKERS = ("dataloader.train.num_workers", "dataloader.test.num_workers")
_CACHE = "dataloader.train.mapper.cache_mib"
_OF_THE_MACHINE = ("train.output_dir", "train.device", _CACHE, *_WORKERS)  # settings that a run may change


@dataclass(frozen=True)
class Resources:
    """What a training gets of the machine. It is no part of what results are recognised by.

    Attributes:
        threads: of its process on the CPU; None: as torch chooses.
        device: "cpu", "cuda", ...; None: as the config says.
        workers: processes that load data, for training and for evaluation; None: as the config says.
    """

    threads: int | None = None
    device: str | None = None
    workers: int | None = None

    @property
    def overrides(self) -> list[str]:
        device = [] if self.device is None else [f"train.device={self.device}"]
        return device if self.workers is None else [*device, *(f"{key}={self.workers}" for key in _WORKERS)]

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ) if self.threads is None else {**os.environ, "OMP_NUM_THREADS": str(self.threads)}


def result_of(run: Training, command: Sequence[str] = TRAIN, resources: Resources | None = None) -> dict[str, float]:
    """Train what `run` says, from its last checkpoint if there is one, unless it is finished already.

    A run keeps the settings that it has begun with: if its config says something else now, that is an error.

    Args:
        command: what trains, given the arguments of tools/lazyconfig_train_net.py.
        resources: None: as torch and the config choose.

    Returns:
        Of the last evaluation, in percent, each as `bbox/<figure>`: AP, AP50, AP75, APs, APm, APl, AP_NMS where the
        evaluator has `nms`, and average recall (AR1, AR10, AR100, ARs, ARm and ARl of COCO); figures without ground
        truth are left out. Of the training:
        `first_loss` and `last_loss` (total, as logged), `iterations`, and, where the log has them, `step_seconds` and
        `data_seconds`: the medians of the time per step and of the part of it spent waiting for data.

    Raises:
        UserError: the training failed, and the message names its log; or its settings have changed since it began.
    """
    _check_unchanged(run)
    result = finished_result(run)
    if result is None:
        train(run, command, resources or Resources())
        result = _figures(run)
        if missing := [key for key in METRICS if key not in read_metrics(run.folder).series]:
            raise UserError(f"training of {run} was not evaluated: {run.folder} has no {', '.join(missing)}")
    _store(run, {"result": result})
    return result


def prepare(preparation: Preparation, command: Sequence[str] = TRAIN, resources: Resources | None = None) -> None:
    """Train a preparation unless its weights exist, and store its result, as that of a run. Where another study trains
    it, wait.

    Raises:
        UserError: as for `result_of`.
    """
    lock = file_lock(str(preparation.folder))
    lock.acquire(timeout=math.inf)  # iopath's is one hour
    try:
        _check_unchanged(preparation)
        if not preparation.weights.is_file():
            train(preparation, command, resources or Resources())
        if _has_losses(preparation):  # weights may be from elsewhere
            _store(preparation, {"result": _figures(preparation)})
    finally:
        lock.release()


def _has_losses(training: Training) -> bool:
    """Whether it was trained in its folder; evaluations alone write figures, too."""
    return (training.folder / METRICS_FILE).is_file() and "total_loss" in read_metrics(training.folder).series


def is_finished(training: Training) -> bool:
    if isinstance(training, Preparation):
        return training.weights.is_file()
    return finished_result(training) is not None


def has_begun(training: Training) -> bool:
    """Whether there is a checkpoint to resume from."""
    return (training.folder / "last_checkpoint").is_file()


def curve_of(run: Training) -> list[dict[str, float]] | None:
    """The evaluations of a run, in their order: `iteration`, the number of steps before, `AP` in percent, and `AP_NMS`
    where the evaluator has `nms`. Evaluations without detections are left out. None: a finished run of which only older
    results are kept."""
    stored = next((each["curve"] for each in _stored(run) if "curve" in each), None)
    if stored is None:
        if not (run.folder / METRICS_FILE).is_file():
            return None
        stored = _evaluations(run)
    _store(run, {"curve": stored})
    return stored


def _evaluations(run: Training) -> list[dict[str, float]]:
    series = read_metrics(run.folder).series
    last = int(series["total_loss"][0][-1])
    points: dict[int, dict[str, float]] = {}
    for name in ("AP", AP_NMS):
        for iteration, value in zip(*series.get(f"bbox/{name}", ((), ())), strict=True):
            done = min(int(iteration), last) + 1  # the evaluation at the end is logged one later than others
            if math.isfinite(value):
                points.setdefault(done, {"iteration": done})[name] = float(value)
    return [points[done] for done in sorted(points)]


def cost_of(run: Run, images: int, rounds: int, device: str) -> dict[str, Any] | None:
    """What inference of a finished run costs, measured with its trained weights on the first images of its test loader,
    unless it has been measured so before.

    Args:
        images: how many; all if the loader has fewer.
        rounds: of timing, see `model_cost`.
        device: "cpu", "cuda", ...

    Returns:
        `parameters`, `flops` and `ms_per_image` of `model_cost`, the number of `images` and `rounds`, and the `device`.
        None: the weights are no longer there.
    """
    asked = {"images_asked": images, "rounds": rounds, "device": device}

    def measure() -> dict[str, Any]:
        cfg = load_config(run.variant.config, run.overrides)
        model = load_model(cfg, str(run.weights), device)
        inputs = evaluation_images(cfg, images, str(next(model.parameters()).device))
        measured = model_cost(model, inputs, rounds)
        return {key: measured[key] for key in ("parameters", "flops", "ms_per_image")} | {"images": len(inputs)}

    return measured_once(run, "cost", asked, measure)


def measured_once(
    run: Run, part: str, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
    """What is measured with the weights of a finished run, and `asked`, what it depends on; kept as a part of what is
    known about the run. None: it has not been measured, and the weights are no longer there."""
    stored = next((each[part] for each in _stored(run) if part in each), None)
    if not run.weights.is_file():
        if stored is not None:
            _store(run, {part: stored})
        return stored
    if stored is None or not asked.items() <= stored.items():
        stored = measure() | asked
    _store(run, {part: stored})
    return stored


def _stored(run: Training) -> list[dict[str, Any]]:
    """What the files of a run hold.

    Raises:
        UserError: a file is of another run.
    """
    contents = []
    for file in run.result_files:
        if not file.is_file():
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        own, other = run.signature, content["run"]
        if differing := [f"{key}: {other.get(key)} -> {own[key]}" for key in own if other.get(key) != own[key]]:
            raise UserError(
                f"{file} is of another run ({'; '.join(differing)}): choose another output, or remove the file"
            )
        contents.append(content)
    return contents


def _store(run: Training, part: dict[str, Any]) -> None:
    """Put a part of what is known about a run, `result` or `cost`, into all of its files."""
    known: dict[str, Any] = {}
    for content in reversed(_stored(run)):
        known |= content
    text = json.dumps({**known, "run": run.signature, **part}, indent=2) + "\n"
    for file in run.result_files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: stream.write(text.encode()))


def _check_unchanged(run: Training) -> None:
    """Raise UserError if a run has begun with other settings, by the `config.yaml` of its folder."""
    before = saved_config(str(run.folder / TRAINING_CONFIG))
    if before is None:
        return
    changes = changed_settings(before, load_config(run.variant.config, run.overrides))
    if lines := describe_changes({key: pair for key, pair in changes.items() if key not in _OF_THE_MACHINE}):
        raise UserError(
            f"the run of {run} began with other settings ({'; '.join(lines)}): "
            f"change them back, choose another output, or remove {run.folder} to train it anew"
        )


def finished_result(run: Training) -> dict[str, float] | None:
    return next((content["result"] for content in _stored(run) if "result" in content), None)


def train(run: Training, command: Sequence[str], resources: Resources) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [*command, "--config-file", run.variant.config, "--resume", *run.overrides, *resources.overrides]
    log = run.folder / "stdout.txt"
    with log.open("a", encoding="utf-8") as file:
        code = run_process(command, stdout=file, stderr=subprocess.STDOUT, env=resources.environment)
    if code:
        raise UserError(f"training of {run} ended with exit status {code}: see {log}")


def _figures(run: Training) -> dict[str, float]:
    series = read_metrics(run.folder).series
    iterations, losses = series["total_loss"]
    figures = {key: float(series[key][1][-1]) for key in series if _PRECISIONS.fullmatch(key)} | average_recall(run)
    return {
        **{key: value for key, value in figures.items() if math.isfinite(value)},
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "iterations": int(iterations[-1]) + 1,
        **{key: statistics.median(series[name][1]) for key, name in _TIMES.items() if name in series},
    }


def average_recall(run: Training) -> dict[str, float]:
    """Average recall of the detections that the last evaluation of a run has written, in percent, as `bbox/AR...`;
    empty if there are none, or the test dataset has no annotation file. Of several evaluators, the first counts that
    writes detections and has such a file."""
    folder = run.folder / "inference"
    file = next((path for name in _DETECTIONS if (path := folder / name).is_file()), None)
    if file is None:
        return {}
    loaders = load_config(run.variant.config, run.overrides).dataloader
    for evaluator in loaders.evaluator if isinstance(loaders.evaluator, ListConfig) else [loaders.evaluator]:
        writes = evaluator.get("output_dir", str(folder)) == str(folder)
        annotations = _annotations(evaluator.get("dataset_name", loaders.test.dataset.names))
        if writes and annotations is not None:
            recall = evaluate_file(file, annotations, evaluator.get("max_dets_per_image"))["AR"]
            return {f"bbox/{name}": value for name, value in recall.items()}
    return {}


def _annotations(dataset: str | Sequence[str]) -> str | None:
    """The annotation file of a dataset, by its name or a list of it; of several datasets there is no such file."""
    names = [dataset] if isinstance(dataset, str) else list(dataset)
    return MetadataCatalog.get(names[0]).get("json_file") if len(names) == 1 else None
