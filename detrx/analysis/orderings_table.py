"""The section of MODEL_ZOO.md on the orderings that papers report."""

import math
import statistics
from collections.abc import Sequence

from .orderings import (
    APPEARS,
    DOES_NOT,
    LEARNED,
    LEAST_SEEDS,
    NOT_MEASURED,
    Comparison,
    Ordering,
    Step,
    verdict_of,
    weakest,
)
from .table import NOTHING, markdown

HEADER = """
## Do the papers' orderings appear?

What the papers conclude (`benchmarks/orderings.yaml`), and whether our studies show it. "a → b" are the figures of the
variant that the paper finds worse and of the one that it finds better. Ours are means over the seeds; their difference
is given with its standard error, √(s₁²/n₁ + s₂²/n₂), for the seeds of two variants are independent samples. An ordering

- **appears** if the difference is in the paper's direction, and larger than 2 standard errors (and than a margin by 2
  standard errors, where the claim names one),
- **does not** appear if the difference and 2 standard errors together are less than a quarter of the paper's
  difference (with a margin: less than that), so that no gain worth naming remains possible; a difference of more than
  2 standard errors in the other direction is such a case,
- is **undecided** otherwise, and if a variant has fewer than 3 seeds.

Between variants that are alike, with 3 seeds of each, the difference exceeds 2 standard errors in the paper's direction
in about 6% of cases (t distribution, 4 degrees of freedom). An ordering of several steps, a ladder or the best of a
family, appears if all steps do, and does not if one does not; so the more steps it has, the harder is the first and the
easier the second. The first table has, of the steps that have this verdict, the one with the smallest difference in
standard errors. The second table has all of them. "†": non-maximum suppression adds more than 1 AP to one of the two
variants, so they are compared before they have learned to leave out duplicates; "‡": whether they have is not
recorded.
"""


def section(orderings: Sequence[Ordering], results: Sequence[dict[str, list[Comparison]]]) -> str:
    """Markdown of the orderings and what `compare_all` found: the table, a count, and a table of the steps."""
    datasets = list(dict.fromkeys(dataset for each in orderings for dataset in each.records))
    rows = [_row(ordering, found, datasets) for ordering, found in zip(orderings, results, strict=True)]
    parts = [HEADER, "\n", markdown(rows), "\n", _count(results, datasets), "\n"]
    steps = [
        _step_row(ordering, step, [found.get(dataset, [])[index : index + 1] for dataset in datasets], datasets)
        for ordering, found in zip(orderings, results, strict=True)
        if len(ordering.steps) > 1
        for index, step in enumerate(ordering.steps)
    ]
    if steps:
        parts += ["\n### Steps of the orderings that have several\n\n", markdown(steps)]
    return "".join(parts)


def _count(results: Sequence[dict[str, list[Comparison]]], datasets: Sequence[str]) -> str:
    verdicts = [{dataset: verdict_of(each) for dataset, each in found.items()} for found in results]
    appear = sum(APPEARS in each.values() for each in verdicts)
    apart = [f"{sum(each.get(dataset) == APPEARS for each in verdicts)} on {dataset}" for dataset in datasets]
    not_at_all = sum(DOES_NOT in each.values() and APPEARS not in each.values() for each in verdicts)
    return (
        f"{appear} of {len(results)} orderings appear on at least one dataset ({', '.join(apart)}). Of the others, "
        f"{not_at_all} do not appear on at least one, by the rule above; {len(results) - appear - not_at_all} are "
        "undecided or not measured."
    )


def _row(ordering: Ordering, found: dict[str, list[Comparison]], datasets: Sequence[str]) -> dict[str, str]:
    several = len(ordering.steps) > 1
    least = min(ordering.steps, key=lambda step: math.inf if step.paper is None else ordering.paper_gain(step) or 0)
    paper = _paper(ordering, least, several)
    row = {"ordering": ordering.claim, "figure": _name(ordering), "paper": paper}
    for dataset in datasets:
        row[dataset] = _cell(ordering, found.get(dataset, []), several)
    return row | {"source": f"{ordering.source}, {ordering.where}"}


def _name(ordering: Ordering) -> str:
    return ordering.figure.removeprefix("bbox/") + " (lower is better)" * ordering.lower_is_better


def _step_row(
    ordering: Ordering, step: Step, comparisons: Sequence[list[Comparison]], datasets: Sequence[str]
) -> dict[str, str]:
    row = {"ordering": ordering.claim, "step": str(step), "paper": _paper(ordering, step, False)}
    return row | {dataset: _cell(ordering, each, False) for dataset, each in zip(datasets, comparisons, strict=True)}


def _paper(ordering: Ordering, step: Step, several: bool) -> str:
    if step.paper is None:
        return NOTHING
    better, worse = step.paper
    digits = _digits(ordering)
    text = f"{better - worse:+.{digits}f} ({worse:.{digits}f} → {better:.{digits}f})"
    return f"{text}, the smallest of {len(ordering.steps)}" if several else text


def _cell(ordering: Ordering, comparisons: Sequence[Comparison], several: bool) -> str:
    verdict = verdict_of(comparisons) if comparisons else NOT_MEASURED
    if verdict == NOT_MEASURED:
        return NOT_MEASURED
    each = weakest(comparisons)
    digits = _digits(ordering)
    better, worse = (statistics.fmean(values) for values in (each.better, each.worse))
    error = "" if math.isnan(each.error) else f" ± {each.error:.{digits}f}"
    seeds = min(len(each.better), len(each.worse))
    few = f", {seeds} seed{'s' * (seeds > 1)}" if seeds < LEAST_SEEDS else ""
    step = f"{each.step}: " if several else ""
    means = f"({worse:.{digits}f} → {better:.{digits}f}{few})"
    early = "‡" if math.isnan(each.duplicates) else "†" * (each.duplicates > LEARNED)
    return f"**{verdict}**{early}: {step}{better - worse:+.{digits}f}{error} {means}"


def _digits(ordering: Ordering) -> int:
    """After the point: AP is in percent, coefficients are below 1."""
    return 1 if ordering.figure.startswith("bbox/") else 3
