"""Whether the orderings that papers report appear in our studies: statistics, verdicts, and tables of both."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrx.config_zoo.yaml_files import read_yaml
from detrx.errors import InvalidInputError
from detrx.evaluation.nms import AP_NMS

APPEARS, DOES_NOT, UNDECIDED, NOT_MEASURED = "appears", "does not", "undecided", "not measured"
LEAST_SEEDS = 3
STANDARD_ERRORS = 2.0
NEGLIGIBLE = 0.25
"""Part of the paper's difference that an ordering must reach to be more than negligible."""

LEARNED = 1.0
"""What non-maximum suppression may add to the AP of a detector that has learned to leave out duplicates."""

_KEYS = {"claim", "source", "where", "records", "steps"}
_OPTIONAL = {"figure", "lower_is_better", "margin"}
_STEP = {"better", "worse"}


@dataclass(frozen=True)
class Step:
    """One comparison: the names of two variants, and the paper's figures of both, (better, worse), if it has them."""

    better: str
    worse: str
    paper: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.worse} → {self.better}"


@dataclass(frozen=True)
class Ordering:
    """
    Attributes:
        claim, source, where: what the paper says, which paper, and in which table.
        records: the record of a study, by name of the dataset.
        steps: one comparison, or several that must all hold: a ladder, or the best of a family.
        figure: what is compared, a key of the record's results.
        lower_is_better: of the figure.
        margin: the difference that must be exceeded, where the paper says "far".
    """

    claim: str
    source: str
    where: str
    records: Mapping[str, str]
    steps: tuple[Step, ...]
    figure: str = "bbox/AP"
    lower_is_better: bool = False
    margin: float = 0.0

    def gain(self, better: float, worse: float) -> float:
        """The difference in the paper's direction."""
        return worse - better if self.lower_is_better else better - worse

    def paper_gain(self, step: Step) -> float | None:
        return None if step.paper is None else self.gain(*step.paper)


@dataclass(frozen=True)
class Comparison:
    """A step in a record. Without figures of both variants, `better` and `worse` are empty.

    Attributes:
        better, worse: the figures of the seeds.
        gain: difference of the means in the paper's direction, and `error`, its standard error; NaN where a variant has
            fewer than two seeds.
        verdict: one of the four.
        duplicates: what non-maximum suppression adds to the AP of one of the two variants, at most; NaN: not recorded.
    """

    step: Step
    better: tuple[float, ...]
    worse: tuple[float, ...]
    gain: float
    error: float
    verdict: str
    duplicates: float = math.nan

    @property
    def strength(self) -> float:
        """How clearly the step appears: the gain in standard errors."""
        if self.error:
            return self.gain / self.error
        return math.copysign(math.inf, self.gain) if self.gain else 0.0


def compare(ordering: Ordering, step: Step, record: Mapping[str, Any] | None) -> Comparison:
    """Compare the two variants of a step in a record; None: there is no such record.

    With difference d in the paper's direction, standard error e and margin m, the step appears if d - 2 e > m. It does
    not if d + 2 e is less than m, or, without a margin, than a quarter of the paper's difference: then even a gain that
    is small beside the paper's is excluded. Everything else, and whatever has fewer than three seeds, is undecided.
    """
    better, worse = (_values(record, name, ordering.figure) for name in (step.better, step.worse))
    if not better or not worse:
        return Comparison(step, (), (), math.nan, math.nan, NOT_MEASURED)
    gain = ordering.gain(statistics.fmean(better), statistics.fmean(worse))
    duplicates = _duplicates(record, (step.better, step.worse))
    if min(len(better), len(worse)) < 2:
        return Comparison(step, better, worse, gain, math.nan, UNDECIDED, duplicates)
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (better, worse)))
    verdict = UNDECIDED
    if min(len(better), len(worse)) >= LEAST_SEEDS:
        negligible = ordering.margin or NEGLIGIBLE * (ordering.paper_gain(step) or 0.0)
        if gain - STANDARD_ERRORS * error > ordering.margin:
            verdict = APPEARS
        elif gain + STANDARD_ERRORS * error < negligible:
            verdict = DOES_NOT
    return Comparison(step, better, worse, gain, error, verdict, duplicates)


def _duplicates(record: Mapping[str, Any] | None, variants: Sequence[str]) -> float:
    added = []
    for name in variants:
        after, before = (_values(record, name, f"bbox/{figure}") for figure in (AP_NMS, "AP"))
        if after and before:
            added.append(statistics.fmean(after) - statistics.fmean(before))
    return max(added, default=math.nan)


def _values(record: Mapping[str, Any] | None, variant: str, figure: str) -> tuple[float, ...]:
    found = (record or {}).get("variants", {}).get(variant, {}).get("result", {}).get(figure)
    return tuple(found["values"]) if found else ()


def verdict_of(comparisons: Sequence[Comparison]) -> str:
    """Of an ordering: it appears if all steps do, and does not if one does not, even where others are not measured."""
    verdicts = {each.verdict for each in comparisons}
    return next(each for each in (DOES_NOT, NOT_MEASURED, UNDECIDED, APPEARS) if each in verdicts)


def weakest(comparisons: Sequence[Comparison]) -> Comparison:
    """Of the comparisons that have the verdict of them all, that with the smallest gain in standard errors; if the
    error of one is not known, that with the smallest gain."""
    deciding = [each for each in comparisons if each.verdict == verdict_of(comparisons)]
    if any(math.isnan(each.error) for each in deciding):
        return min(deciding, key=lambda each: each.gain)
    return min(deciding, key=lambda each: each.strength)


def read_orderings(path: str | os.PathLike) -> list[Ordering]:
    """Read orderings from YAML: a list with `claim`, `source`, `where`, `records` (names of studies by dataset) and
    `steps`, each with `better`, `worse` and optionally `paper`, [figure of the better, of the worse]; optionally
    `figure`, `lower_is_better` and `margin`.

    Raises:
        ValueError: the file is not such a list; names the ordering and the key.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise InvalidInputError(f"{path} must be a list of orderings, got {entries!r}")
    return [_ordering(entry, f"{path}, ordering {number}") for number, entry in enumerate(entries, start=1)]


def _ordering(entry: Any, where: str) -> Ordering:
    if not isinstance(entry, dict) or not _KEYS <= entry.keys() <= _KEYS | _OPTIONAL:
        found = sorted(entry) if isinstance(entry, dict) else repr(entry)
        raise InvalidInputError(f"{where} needs {sorted(_KEYS)} and may have {sorted(_OPTIONAL)}; it has {found}")
    if not isinstance(entry["records"], dict) or not isinstance(entry["steps"], list) or not entry["steps"]:
        raise InvalidInputError(f"{where}: expected `records` by dataset and a list of `steps`, got {entry}")
    ordering = Ordering(**{**entry, "steps": tuple(_step(each, where) for each in entry["steps"])})
    for step in ordering.steps:
        if step.paper is not None and ordering.gain(*step.paper) <= 0:
            raise InvalidInputError(f"{where}: the paper's figures {list(step.paper)} are not in the order of {step}")
    return ordering


def _step(entry: Any, where: str) -> Step:
    if not isinstance(entry, dict) or not _STEP <= entry.keys() <= _STEP | {"paper"}:
        raise InvalidInputError(f"{where}: a step needs `better` and `worse` and may have `paper`, got {entry}")
    paper = entry.get("paper")
    if paper is not None:
        numbers = isinstance(paper, list) and all(isinstance(each, (int, float)) for each in paper)
        if not numbers or len(paper) != 2:
            raise InvalidInputError(f"{where}: `paper` must be two numbers, got {paper}")
    return Step(entry["better"], entry["worse"], paper and tuple(paper))


def compare_all(orderings: Sequence[Ordering], records: Path) -> list[dict[str, list[Comparison]]]:
    """The comparisons of each ordering by dataset, with the records `<name>.json` of a folder."""
    found: dict[str, Any] = {}
    for name in {name for each in orderings for name in each.records.values()}:
        file = records / f"{name}.json"
        found[name] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return [
        {
            dataset: [compare(ordering, step, found[name]) for step in ordering.steps]
            for dataset, name in ordering.records.items()
        }
        for ordering in orderings
    ]
