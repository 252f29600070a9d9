"""Analyses of what the queries of a trained detector do on a dataset: their interface, and where they are found.

`tools/analyze_queries.py` offers every registered analysis as an option of its name, and the report of a training shows
the tables of those that apply to its model. `activation` and `supervision` are for all detectors. A method offers its
own in the module `analysis` of its package in `detrx.projects`, with `@QUERY_ANALYSES.register()`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fvcore.common.registry import Registry
from torch import nn

from detrx import projects
from detrx.d2.evaluation import DatasetEvaluator
from detrx.d2.structures import Instances
from detrx.errors import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["QUERY_ANALYSES", "QueryAnalysis", "QueryTable", "Subject", "query_analyses"]

QUERY_ANALYSES = Registry("QUERY_ANALYSES")


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        model: in evaluation mode; it is called with one image at a time.
        model_cfg: the description of the model.
        class_names: by class index; may be empty.
        score_threshold: least score of a confident detection.
        options: what the arguments of the analyses were set to; by default to what `add_arguments` says.
        iteration: the iteration of a training whose steps are analysed.
        make_evaluator: makes the evaluator of the config for the dataset; None if there is none.
    """

    model: nn.Module
    model_cfg: Any = None
    class_names: Sequence[str] = ()
    score_threshold: float = 0.5
    options: argparse.Namespace | None = None
    iteration: int = 0
    make_evaluator: Callable[[], DatasetEvaluator] | None = None

    def option(self, name: str, default: Any) -> Any:
        return getattr(self.options, name, default)


@dataclass(frozen=True)
class QueryTable:
    """A table for a report: numbers are formatted by who shows it, floats with one decimal."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


class QueryAnalysis(ABC):
    """Watches a model, image by image, and writes figures and pictures.

    Attributes:
        name: of the option, and of the files: `<name>.json`, `<name>.png`.
        help: of the option.
        on_training: whether it watches training steps. It then gets images as the training mapper makes them, with
            their ground truth in place of detections, and calls the model itself.
        in_report: whether the report of a training has its table.
        images: how many were observed; to be counted by `observe`.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    on_training: ClassVar[bool] = False
    in_report: ClassVar[bool] = False
    images: int = 0

    @classmethod  # noqa: B027 - most have none
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Further options of a command line. Each needs a default, and its help begins with "with --<name>:"."""

    @classmethod
    def applies_to(cls, model: nn.Module) -> bool:
        """Whether the model has what is analysed."""
        return True

    @classmethod
    @abstractmethod
    def of(cls, subject: Subject) -> QueryAnalysis:
        """Begin an analysis.

        Raises:
            ValueError: the model does not have what is analysed, see `applies_to`.
            ImportError: a package is missing.
        """

    @staticmethod
    def watch(module: nn.Module, note: Callable[[tuple[Any, ...], Any], None]) -> None:
        """Call `note` with the positional arguments and the output of every call of a module in evaluation mode.

        Training steps, which an analysis with `on_training` may run on the same model, are left out.
        """

        def note_evaluation(called: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not called.training:
                note(args, output)

        module.register_forward_hook(note_evaluation)

    @abstractmethod
    def observe(self, inputs: dict[str, Any], instances: Instances) -> None:
        """Take account of an image that the model was just called with; with `on_training`, of one that it was not.

        Args:
            inputs: the image's element of the model's input.
            instances: its detections; with `on_training`, its ground truth.
        """

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """What `<name>.json` holds."""

    def scalars(self) -> dict[str, float]:
        """Single figures for the record of a study, by name; most have none."""
        return {}

    @abstractmethod
    def draw(self, figures: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
        """Draw the figures.

        Returns:
            lines of text that say what the figures show, and the names of the files that were written.
        """

    def write(self, folder: Path) -> str:
        """Write `<name>.json` and the pictures, and return a summary.

        Raises:
            ValueError: no image was observed.
        """
        if not self.images:
            raise InvalidInputError(f"{self.name}: the dataset has no images")
        figures = self.figures()
        (folder / f"{self.name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        lines, pictures = self.draw(figures, folder)
        return "\n".join([*lines, f"figures and pictures in {folder}: {', '.join([f'{self.name}.json', *pictures])}"])

    def table(self) -> QueryTable:
        """What a report shows; needed with `in_report` only."""
        raise NotImplementedError

    @classmethod
    def compare(cls, analyses: Mapping[str, Mapping[int, Self]], folder: Path) -> str | None:
        """Write what a study's variants and seeds have in common or differ in, and return it as text.

        Args:
            analyses: by name of the variant and seed.
        """
        return None


def query_analyses() -> dict[str, type[QueryAnalysis]]:
    """All analyses by name: those of the library first, then those of the methods in `detrx.projects`."""
    modules = ["detrx.analysis.activation", "detrx.analysis.supervision"]
    modules += [f"detrx.projects.{package.name}.analysis" for package in pkgutil.iter_modules(projects.__path__)]
    for module in modules:
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    found = [analysis for _, analysis in QUERY_ANALYSES]
    found.sort(key=lambda analysis: (not analysis.__module__.startswith("detrx.analysis."), analysis.__module__))
    return {analysis.name: analysis for analysis in found}
