"""Studies: several variants of a training, each with several seeds, and the files that describe them."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from detrx import config_zoo
from detrx.config_zoo.yaml_files import read_yaml
from detrx.errors import InvalidInputError

_WEIGHTS = "model_final.pth"
_KEYS = {"title", "description", "seeds", "variants"}
_OPTIONAL = {"analyses", "config", "overrides", "prepare"}
_WITHOUT_EFFECT = {"size"}  # of earlier files: the random image that costs were measured on


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


class Training:
    """A training that a study needs, and what it writes. `kept` is a folder for copies of the results, or None."""

    variant: Variant
    kept: Path | None

    @property
    def folder(self) -> Path:
        """Where it trains."""
        raise NotImplementedError

    @property
    def place(self) -> Path:
        """Of the copy of its result in `kept`."""
        raise NotImplementedError

    @property
    def settings(self) -> list[str]:
        """Overrides of the config without the folder."""
        return list(self.variant.overrides)

    @property
    def signature(self) -> dict[str, Any]:
        """What results are recognised by."""
        return {"config": self.variant.config, "overrides": list(self.variant.overrides)}

    @property
    def overrides(self) -> list[str]:
        return [f"train.output_dir={self.folder}", *self.settings]

    @property
    def weights(self) -> Path:
        """Checkpoint that the training ends with."""
        return self.folder / _WEIGHTS

    @property
    def result_files(self) -> tuple[Path, ...]:
        of_output = self.folder / "result.json"
        return (of_output,) if self.kept is None else (of_output, self.kept / self.place)

    def uses(self, preparation: "Preparation") -> bool:
        """Whether it begins with, or is taught by, the weights of a preparation."""
        return any(str(preparation.weights) in text for text in self.variant.overrides)


@dataclass(frozen=True)
class Run(Training):
    """One training of a variant with one seed, in the output folder of a study."""

    variant: Variant
    seed: int
    output: Path
    kept: Path | None = None

    def __str__(self) -> str:
        return f"{self.variant.name!r} with seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.output / self.place.with_suffix("")

    @property
    def place(self) -> Path:
        return Path(self.variant.slug, f"seed{self.seed}.json")

    @property
    def settings(self) -> list[str]:
        return [f"train.seed={self.seed}", *self.variant.overrides]

    @property
    def signature(self) -> dict[str, Any]:
        return {**super().signature, "seed": self.seed}


@dataclass(frozen=True)
class Preparation(Training):
    """A training whose weights others begin with, or are taught by. It has its own folder, which studies may share; its
    variant is named after that."""

    variant: Variant
    kept: Path | None = None

    def __str__(self) -> str:
        return f"{self.folder}"

    @property
    def folder(self) -> Path:
        return Path(self.variant.name)

    @property
    def place(self) -> Path:
        return Path("prepare", f"{self.variant.slug}.json")


@dataclass(frozen=True)
class Study:
    """
    Attributes:
        title, description: head of the table: what is compared, and how it was trained.
        seeds: every variant is trained with each.
        variants: what is compared, the overrides of the whole study included.
        prepare: what is trained before.
        analyses: arguments of tools/analyze_queries.py, for the analyses of all runs; none: no analysis.
    """

    title: str
    description: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    prepare: tuple[Preparation, ...] = ()
    analyses: tuple[str, ...] = ()


def load_study(path: str | os.PathLike) -> Study:
    """Read a study from YAML: `title`, `description`, `seeds`, optionally `overrides` for all variants, and `variants`,
    each with a `config`, unless the study has one for all, and optionally `overrides`. What must be trained before is
    in `prepare`: a list of `output`, a folder, `config` and optionally `overrides`. Trainings that have the weights of
    this folder in their overrides come after it. `analyses` is a text with arguments of tools/analyze_queries.py.

    Raises:
        FileNotFoundError: there is no such file, or no such config.
        ValueError: the file is not such a study; names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"study {path} does not exist")
    content = read_yaml(path)
    if not isinstance(content, dict) or not _KEYS <= content.keys() <= _KEYS | _OPTIONAL | _WITHOUT_EFFECT:
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
        _check_config(config, f"study {path}: config {config} of {name!r}")
        overrides = [*_overrides(content, f"study {path}"), *_overrides(variant, f"study {path}: variant {name!r}")]
        variants.append(Variant(str(name), config, tuple(overrides)))
    _check_folders(variants, path)
    seeds = check_seeds(content["seeds"], f"study {path}: `seeds`")
    prepare = _preparations(content.get("prepare"), f"study {path}: `prepare`")
    for each in prepare:
        if not any(Run(variant, 0, Path()).uses(each) for variant in variants) and not any(
            other.uses(each) for other in prepare
        ):
            raise InvalidInputError(f"study {path}: `prepare`: nothing uses {each.weights}")
    analyses = content.get("analyses", "")
    if not isinstance(analyses, str):
        raise InvalidInputError(f"study {path}: `analyses` must be a text, such as '--activation', got {analyses}")
    return Study(
        content["title"], content["description"], seeds, tuple(variants), prepare, tuple(shlex.split(analyses))
    )


def _preparations(entries: Any, source: str) -> tuple[Preparation, ...]:
    preparations: list[Preparation] = []
    if not isinstance(entries or [], list):
        raise InvalidInputError(f"{source} must be a list of trainings, got {entries}")
    for entry in entries or ():
        if not isinstance(entry, dict) or not {"output", "config"} <= entry.keys() <= {"output", "config", "overrides"}:
            raise InvalidInputError(f"{source} needs `output` and `config`, and may have `overrides`, got {entry}")
        output = str(entry["output"])
        _check_config(entry["config"], f"{source}: config {entry['config']} of {output}")
        each = Preparation(Variant(output, entry["config"], tuple(_overrides(entry, f"{source}: {output}"))))
        if any(other.folder == each.folder for other in preparations):
            raise InvalidInputError(f"{source} has the output {output} twice")
        preparations.append(each)
    used = {each: [other for other in preparations if each.uses(other)] for each in preparations}
    try:
        TopologicalSorter(used).prepare()
    except CycleError as error:
        circle = " uses ".join(str(each) for each in reversed(error.args[1]))
        raise InvalidInputError(f"{source}: {circle}") from error
    return tuple(preparations)


def _check_config(config: str, what: str) -> None:
    if not Path(config).is_file() and config_zoo.name_of(config) is None:
        raise FileNotFoundError(f"{what} does not exist")


def check_seeds(seeds: Any, source: str) -> tuple[int, ...]:
    """Check the seeds of a study, and return them as a tuple.

    Raises:
        ValueError: they are not different whole numbers from 0 on; a negative seed would be another one in every run.
    """
    are_numbers = isinstance(seeds, (list, tuple)) and all(
        isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in seeds
    )
    if not are_numbers or len(set(seeds)) != len(seeds) or not seeds:
        raise InvalidInputError(f"{source} must be different whole numbers, 0 or more, got {seeds}")
    return tuple(seeds)


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
