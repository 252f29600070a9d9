"""Studies: several variants of a training, each with several seeds, and the table of their results."""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrx import config_zoo
from detrx.atomic import write_atomically
from detrx.config_zoo.yaml_files import read_yaml
from detrx.engine import load_config
from detrx.engine.output_folder import TRAINING_CONFIG
from detrx.engine.settings import changed_settings, describe_changes, saved_config
from detrx.errors import InvalidInputError, UserError

from .metrics import read_metrics

TRAIN = (sys.executable, "-m", "detrx.cli", "lazyconfig_train_net")
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")
_KEYS = {"title", "description", "seeds", "variants"}
_OPTIONAL = {"config", "overrides", "size"}
_OF_THE_MACHINE = ("train.output_dir", "train.device")  # settings that a run may change


@dataclass(frozen=True)
class Variant:
    """A config, by file or name, and what is changed in it."""

    name: str
    config: str
    overrides: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as one of a folder that needs no quotes in overrides."""
        return re.sub(r"[^\w+.-]+", "_", self.name)


@dataclass(frozen=True)
class Run:
    """One training of a variant with one seed: the output folder, and `kept`, a folder for a copy of its result."""

    variant: Variant
    seed: int
    output: Path
    kept: Path | None = None

    @property
    def folder(self) -> Path:
        return self.output / self.variant.slug / f"seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        return [f"train.output_dir={self.folder}", f"train.seed={self.seed}", *self.variant.overrides]

    @property
    def result_files(self) -> tuple[Path, ...]:
        of_output = self.folder / "result.json"
        return (
            (of_output,) if self.kept is None else (of_output, self.kept / self.variant.slug / f"seed{self.seed}.json")
        )

    @property
    def signature(self) -> dict[str, Any]:
        return {"config": self.variant.config, "overrides": list(self.variant.overrides), "seed": self.seed}


@dataclass(frozen=True)
class Study:
    """
    Attributes:
        title, description: head of the table: what is compared, and how it was trained.
        seeds: every variant is trained with each.
        size: (height, width) of the images for which costs are counted.
        variants: what is compared, the overrides of the whole study included.
    """

    title: str
    description: str
    seeds: tuple[int, ...]
    size: tuple[int, int]
    variants: tuple[Variant, ...]


def load_study(path: str | os.PathLike) -> Study:
    """Read a study from YAML: `title`, `description`, `seeds`, optionally `overrides` for all variants and the image
    `size` (default [128, 128]), and `variants`, each with a `config`, unless the study has one for all, and optionally
    `overrides`.

    Raises:
        FileNotFoundError: there is no such file, or no such config.
        ValueError: the file is not such a study; names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"study {path} does not exist")
    content = read_yaml(path)
    if not isinstance(content, dict) or not _KEYS <= content.keys() <= _KEYS | _OPTIONAL:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise InvalidInputError(f"study {path} needs {sorted(_KEYS)} and may have {sorted(_OPTIONAL)}; it has {found}")
    variants = []
    if not isinstance(content["variants"], dict) or not content["variants"]:
        raise InvalidInputError(
            f"study {path}: `variants` must be names with their settings, got {content['variants']}"
        )
    for name, variant in content["variants"].items():
        if not isinstance(variant, dict) or not variant.keys() <= {"config", "overrides"}:
            raise InvalidInputError(f"study {path}: variant {name!r} may have `config` and `overrides`, got {variant}")
        config = variant.get("config", content.get("config"))
        if config is None:
            raise InvalidInputError(f"study {path}: neither variant {name!r} nor the study has a `config`")
        if not Path(config).is_file() and config_zoo.name_of(config) is None:
            raise FileNotFoundError(f"study {path}: config {config} of {name!r} does not exist")
        overrides = [*_overrides(content, f"study {path}"), *_overrides(variant, f"study {path}: variant {name!r}")]
        variants.append(Variant(str(name), config, tuple(overrides)))
    _check_folders(variants, path)
    size = content.get("size", (128, 128))
    if not _are_numbers(size, 1) or len(size) != 2:
        raise InvalidInputError(f"study {path}: `size` must be [height, width] in pixels, got {size}")
    seeds = check_seeds(content["seeds"], f"study {path}: `seeds`")
    return Study(content["title"], content["description"], seeds, tuple(size), tuple(variants))


def check_seeds(seeds: Any, source: str) -> tuple[int, ...]:
    """Check the seeds of a study, and return them as a tuple.

    Raises:
        ValueError: they are not different whole numbers from 0 on; a negative seed would be another one in every run.
    """
    if not _are_numbers(seeds, 0) or len(set(seeds)) != len(seeds) or not seeds:
        raise InvalidInputError(f"{source} must be different whole numbers, 0 or more, got {seeds}")
    return tuple(seeds)


def _are_numbers(values: Any, least: int) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(each, int) and not isinstance(each, bool) and each >= least for each in values
    )


def _overrides(content: dict[str, Any], source: str) -> list[str]:
    overrides = content.get("overrides") or []
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise InvalidInputError(f"{source}: `overrides` must be a list of texts KEY=VALUE, got {overrides}")
    return overrides


def _check_folders(variants: Sequence[Variant], path: Path) -> None:
    names: dict[str, str] = {}
    for variant in variants:
        if (other := names.setdefault(variant.slug, variant.name)) != variant.name:
            raise InvalidInputError(
                f"study {path}: variants {other!r} and {variant.name!r} would share the folder {variant.slug}"
            )


def result_of(run: Run, command: Sequence[str] = TRAIN, threads: int | None = None) -> dict[str, float]:
    """Train a variant, from its last checkpoint if there is one, unless it is finished already.

    A run keeps the settings that it has begun with: if its config says something else now, that is an error.

    Args:
        command: what trains, given the arguments of tools/lazyconfig_train_net.py.
        threads: of the training on the CPU; None: as torch chooses.

    Returns:
        `METRICS` of the last evaluation (in percent), `first_loss` and `last_loss` (total, as logged), `iterations`.

    Raises:
        UserError: the training failed, and the message names its log; or its settings have changed since it began.
    """
    _check_unchanged(run)
    result = finished_result(run)
    if result is None:
        result = train(run, command, threads)
    text = json.dumps({"run": run.signature, "result": result}, indent=2) + "\n"
    for file in run.result_files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: stream.write(text.encode()))
    return result


def _check_unchanged(run: Run) -> None:
    """Raise UserError if a run has begun with other settings, by the `config.yaml` of its folder."""
    before = saved_config(str(run.folder / TRAINING_CONFIG))
    if before is None:
        return
    changes = changed_settings(before, load_config(run.variant.config, run.overrides))
    if lines := describe_changes({key: pair for key, pair in changes.items() if key not in _OF_THE_MACHINE}):
        raise UserError(
            f"the run of {run.variant.name!r} with seed {run.seed} began with other settings ({'; '.join(lines)}): "
            f"change them back, choose another output, or remove {run.folder} to train it anew"
        )


def finished_result(run: Run) -> dict[str, float] | None:
    for file in run.result_files:
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            own, other = run.signature, stored["run"]
            if differing := [f"{key}: {other.get(key)} -> {own[key]}" for key in own if other.get(key) != own[key]]:
                raise UserError(
                    f"{file} is of another run ({'; '.join(differing)}): choose another output, or remove the file"
                )
            return stored["result"]
    return None


def train(run: Run, command: Sequence[str], threads: int | None) -> dict[str, float]:
    name, folder = run.variant.name, run.folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [*command, "--config-file", run.variant.config, "--resume"]
    command += run.overrides
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log = folder / "stdout.txt"
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise UserError(f"training of {name!r} with seed {run.seed} ended with exit status {code}: see {log}")
    series = read_metrics(folder).series
    if missing := [key for key in METRICS if key not in series]:
        raise UserError(f"training of {name!r} was not evaluated: {folder} has no {', '.join(missing)}")
    iterations, losses = series["total_loss"]
    result = {key: float(series[key][1][-1]) for key in METRICS}
    return result | {
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "iterations": int(iterations[-1]) + 1,
    }


def summarise(results: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and, of several seeds, sample standard deviation of every figure."""
    summary: dict[str, Any] = {}
    for key in results[0]:
        values = [result[key] for result in results]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[key] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return summary


def text(figure: dict[str, Any]) -> str:
    """53.1, or 53.1 ± 0.4 where there are several seeds; with one more digit below 1."""
    digits = 1 if figure["mean"] >= 1 else 2
    return f"{figure['mean']:.{digits}f}" + ("" if figure["std"] is None else f" ± {figure['std']:.{digits}f}")


def markdown_table(record: dict[str, Any]) -> str:
    """The table of a record that `tools/study.py` wrote."""
    lines = [
        "| variant | AP | AP50 | AP75 | loss first -> last | parameters (M) | GFLOPs | ms/image | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["variants"].items():
        metrics = " | ".join(text(row["result"][key]) for key in METRICS)
        losses = " -> ".join(f"{row['result'][key]['mean']:.1f}" for key in ("first_loss", "last_loss"))
        time = "-" if row["ms_per_image"] is None else f"{row['ms_per_image']:.1f}"
        cost = f"{row['parameters'] / 1e6:.2f} | {row['flops'] / 1e9:.3f} | {time}"
        lines.append(f"| {name} | {metrics} | {losses} | {cost} | {len(row['seeds'])} |")
    return "\n".join(lines) + "\n"


def plot_study(record: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a PNG with the AP of every variant of a record: mean, standard deviation and each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = record["variants"]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=record["title"], xlabel="AP")
    for place, row in enumerate(rows.values()):
        ap = row["result"]["bbox/AP"]
        axes.barh(place, ap["mean"], xerr=ap["std"], color="tab:blue", alpha=0.5, height=0.6, capsize=3)
        axes.plot(ap["values"], [place] * len(ap["values"]), "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
