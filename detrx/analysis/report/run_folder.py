"""The output folder of a training: config, metrics and log."""

import ast
import datetime
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detrx.analysis.metrics import RunMetrics, read_metrics
from detrx.engine.output_folder import EVALUATION_CONFIG, TRAINING_CONFIG
from detrx.errors import InvalidInputError

_ENTRY = re.compile(r"^\[\d\d/\d\d \d\d:\d\d:\d\d\] ", re.MULTILINE)
_TRAINING_TIME = re.compile(r"Total training time: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")
_BEGIN = "Starting training from iteration "


@dataclass(frozen=True)
class Log:
    """Facts from `log.txt`; those that it lacks are empty.

    Attributes:
        config_file: of the last training; of the last evaluation, if there was no training.
        overrides: of the same, without the output folder.
        eval_only: there was no training.
        environment: names and values of the block "Environment", such as versions.
        seconds: of all trainings in the log; None unless each has logged its end.
        begun: time of the first entry, as logged ("11/21 14:26:50", without the year).
    """

    config_file: str = ""
    overrides: tuple[str, ...] = ()
    eval_only: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    begun: str = ""


@dataclass(frozen=True)
class RunFolder:
    """
    Attributes:
        path: the folder.
        config: content of `config.yaml`, with its interpolations; None if there is no such file.
        config_text: the file as it is.
        metrics: content of `metrics.json`; None if there is no such file.
        log: facts from `log.txt`.
    """

    path: Path
    config: DictConfig | None
    config_text: str
    metrics: RunMetrics | None
    log: Log

    def get(self, key: str) -> Any:
        """Value of a dotted key of the config, or None."""
        if self.config is None:
            return None
        try:
            return OmegaConf.select(self.config, key)
        except OmegaConfBaseException:  # an interpolation of a key that does not exist
            return None

    @property
    def methods(self) -> list[str]:
        """Names of the methods of the model."""
        return [short_name(each) for each in self.get("model.methods") or []]

    @property
    def test_datasets(self) -> list[str]:
        names = self.get("dataloader.test.dataset.names") or []
        return [names] if isinstance(names, str) else list(names)

    @property
    def iterations(self) -> int | None:
        """How many iterations were trained, as far as they were logged."""
        if self.metrics is None or "total_loss" not in self.metrics.series:
            return None
        return int(self.metrics.series["total_loss"][0][-1]) + 1

    @property
    def seconds(self) -> tuple[float, bool] | None:
        """Duration of the training, and whether it is from the log (True) or the sum of the logged iteration times."""
        if self.log.seconds is not None:
            return self.log.seconds, True
        if self.metrics is None or "time" not in self.metrics.series:
            return None
        iterations, times = self.metrics.series["time"]
        before = [-1, *iterations[:-1].tolist()]
        return sum((i - j) * t for i, j, t in zip(iterations.tolist(), before, times.tolist(), strict=True)), False

    @property
    def date(self) -> str:
        """When the training began, from the TensorBoard file or the log; otherwise, when the last scalar was logged."""
        stamps = [re.match(r"events\.out\.tfevents\.(\d+)\.", file.name) for file in self.path.glob("events.out.*")]
        if begun := min((int(stamp[1]) for stamp in stamps if stamp), default=None):
            return f"{_time(begun)} UTC"
        if self.log.begun:
            return f"{self.log.begun} (month/day; no year was logged)"
        file = self.path / "metrics.json"
        return f"{_time(file.stat().st_mtime)} UTC (last entry)" if file.is_file() else ""

    def command(self) -> str:
        """The command of the training, or of the evaluation if there was no training; empty if it was not logged."""
        if not self.log.config_file:
            return ""
        parts = ["python", "tools/lazyconfig_train_net.py", "--config-file", self.log.config_file]
        return shlex.join([*parts, *(["--eval-only"] if self.log.eval_only else []), *self.log.overrides])


def read_run(path: Path) -> RunFolder:
    """Read an output folder of the training script, complete or not.

    Raises:
        FileNotFoundError: there is no such folder, or neither `config.yaml` nor `metrics.json` in it.
        ValueError: one of its files is damaged; names it.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; expected the output folder of a training (train.output_dir)")
    config_file, metrics_file, log_file = config_file_of(path), path / "metrics.json", path / "log.txt"
    if not config_file.is_file() and not metrics_file.is_file():
        raise FileNotFoundError(
            f"{path} has neither config.yaml nor metrics.json; expected the output folder of a training "
            "(train.output_dir)"
        )
    config, text = read_config(config_file) if config_file.is_file() else (None, "")
    metrics = read_metrics(metrics_file, path.resolve().name) if metrics_file.is_file() else None
    log = parse_log(log_file.read_text(errors="replace", encoding="utf-8")) if log_file.is_file() else Log()
    return RunFolder(path, config, text, metrics, log)


def config_file_of(folder: Path) -> Path:
    """The config of the training; of the evaluation, in a folder that has only that."""
    training, evaluation = folder / TRAINING_CONFIG, folder / EVALUATION_CONFIG
    return evaluation if evaluation.is_file() and not training.is_file() else training


def read_config(file: Path) -> tuple[DictConfig, str]:
    text = file.read_text(errors="replace", encoding="utf-8")
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict) or not content:
            raise InvalidInputError(f"{file} is damaged: expected a mapping with keys like model and train")
        return OmegaConf.create(content), text
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidInputError(f"{file} is damaged, it cannot be read as YAML: {reason}") from error


def parse_log(text: str) -> Log:
    entries = list(_entries(text))
    starts = [arguments for entry in entries if (arguments := _arguments(entry))]
    trainings = [arguments for arguments in starts if not arguments.get("eval_only")]
    arguments = (trainings or starts or [{}])[-1]
    blocks = [entry.partition("Environment:\n")[2] for entry in entries if "Environment:\n" in entry]
    lines = blocks[-1].splitlines() if blocks else []
    environment = [(name, value) for name, colon, value in (line.partition(": ") for line in lines) if colon]
    times = [_seconds(match) for match in _TRAINING_TIME.finditer(text)]
    overrides = [each for each in arguments.get("opts") or [] if not each.startswith("train.output_dir=")]
    return Log(
        config_file=arguments.get("config_file") or "",
        overrides=tuple(overrides),
        eval_only=bool(starts) and not trainings,
        environment=tuple(environment),
        seconds=sum(times) if times and len(times) == text.count(_BEGIN) else None,
        begun=text[1:15] if _ENTRY.match(text) else "",
    )


def short_name(node: Any) -> str:
    """Last part of the name of the class that a node of a config describes."""
    target = node.get("_target_", "?") if isinstance(node, DictConfig) else node
    return str(target).rpartition(".")[2]


def _entries(text: str) -> Iterator[str]:
    begins = [match.start() for match in _ENTRY.finditer(text)]
    for begin, end in itertools.pairwise([*begins, len(text)]):
        yield text[begin:end]


def _arguments(entry: str) -> dict[str, Any]:
    """The arguments of the command line that an entry of the log shows; empty if it shows none."""
    _, found, text = entry.partition("Command line arguments: ")
    if not found:
        return {}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) else []
        return {each.arg: ast.literal_eval(each.value) for each in keywords if each.arg}
    except (SyntaxError, ValueError):  # the namespace of another script
        return {}


def _seconds(match: re.Match[str]) -> float:
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def _time(stamp: float) -> str:
    return f"{datetime.datetime.fromtimestamp(stamp, datetime.timezone.utc):%Y-%m-%d %H:%M}"
