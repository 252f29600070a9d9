"""Verdicts on the orderings of papers, on made-up records."""

import json
import math
from pathlib import Path

import pytest
import yaml

from detrx.analysis.orderings import (
    APPEARS,
    DOES_NOT,
    NOT_MEASURED,
    UNDECIDED,
    Ordering,
    Step,
    compare,
    compare_all,
    read_orderings,
    verdict_of,
    weakest,
)
from detrx.analysis.orderings_table import section
from detrx.analysis.study import load_study
from detrx.analysis.study_record import summarise

ROOT = Path(__file__).resolve().parents[2]
STEP = Step("b", "a", (42.0, 40.0))


def ordering(*steps, **changes):
    return Ordering("b beats a", "A paper", "Table 1", {"digits": "made_up"}, steps or (STEP,), **changes)


def record(figure="bbox/AP", **values):
    return {"variants": {name: {"result": summarise([{figure: value} for value in each])}
                         for name, each in values.items()}}  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ((10, 11, 12), (13, 14, 15), APPEARS),  # 3 +- .82
        ((10, 11, 12), (11, 12.5, 14), UNDECIDED),  # 1.5 +- 1.04
        ((13, 14, 15), (10, 11, 12), DOES_NOT),
        ((11, 12.5, 14), (10, 11, 12), UNDECIDED),  # -1.5 +- 1.04: up to +.58, the paper's quarter is .5
        ((10.0, 10.1, 10.2), (10.05, 10.15, 10.25), DOES_NOT),  # +.05 +- .08: up to +.21
        ((10, 10, 10), (10.6, 10.6, 10.6), APPEARS),
        ((10, 10, 10), (10, 10, 10), DOES_NOT),
        ((10, 11), (13, 14, 15), UNDECIDED),  # two seeds
        ((10,), (30, 31, 32), UNDECIDED),
        ((), (13, 14, 15), NOT_MEASURED),
    ],
)
def test_verdicts(a, b, verdict):
    found = compare(ordering(), STEP, record(**{name: each for name, each in (("a", a), ("b", b)) if each}))
    assert found.verdict == verdict


def test_the_error_is_that_of_independent_samples():
    found = compare(ordering(), STEP, record(a=(10, 12, 14), b=(20, 20, 21, 23)))
    assert found.gain == pytest.approx(9)
    assert found.error == pytest.approx(math.sqrt(4 / 3 + 2 / 4))
    assert found.strength == pytest.approx(9 / found.error)
    assert math.isnan(compare(ordering(), STEP, record(a=(10,), b=(20, 21))).error)


def test_without_a_figure_of_the_paper_only_the_other_direction_does_not_appear():
    step = Step("b", "a")
    alike = record(a=(10.0, 10.1, 10.2), b=(10.05, 10.15, 10.25))
    assert compare(ordering(step), step, alike).verdict == UNDECIDED
    assert compare(ordering(step), step, record(a=(13, 14, 15), b=(10, 11, 12))).verdict == DOES_NOT


def test_lower_is_better():
    coefficients = ordering(Step("b", "a", (0.89, 0.97)), figure="gini", lower_is_better=True)
    (step,) = coefficients.steps
    lower, higher = (0.30, 0.31, 0.32), (0.40, 0.41, 0.42)
    assert compare(coefficients, step, record("gini", a=higher, b=lower)).verdict == APPEARS
    assert compare(coefficients, step, record("gini", a=lower, b=higher)).verdict == DOES_NOT
    assert compare(coefficients, step, record(a=higher, b=lower)).verdict == NOT_MEASURED, "another figure"
    assert "-0.100 ± 0.008 (0.410 → 0.310)" in section([coefficients], [
        {"digits": [compare(coefficients, step, record("gini", a=higher, b=lower))]}
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("b", "verdict"), [((20, 21, 22), APPEARS), ((15, 16, 17), UNDECIDED), ((12, 13, 14), DOES_NOT)]
)
def test_a_margin(b, verdict):
    """2 +- .82 is in the direction of the paper, but less than 5."""
    far = ordering(margin=5.0)
    assert compare(far, STEP, record(a=(10, 11, 12), b=b)).verdict == verdict


LADDER = (Step("b", "a", (42.0, 40.0)), Step("c", "b", (45.0, 42.0)))


@pytest.mark.parametrize(
    ("b", "c", "verdict", "shown"),
    [
        ((13, 14, 15), (16, 17.5, 19), APPEARS, "c"),
        ((13, 14, 15), (13, 15, 17), UNDECIDED, "c"),
        ((13, 14, 15), (10, 11, 12), DOES_NOT, "c"),
        ((10, 10.5, 11), (5, 6, 7), DOES_NOT, "c"),
        ((7, 8, 9), (7, 8.2, 9), DOES_NOT, "b"),
        ((13, 14, 15), (), NOT_MEASURED, None),
        ((7, 8, 9), (), DOES_NOT, "b"),
    ],
)
def test_a_ladder(b, c, verdict, shown):
    ladder = ordering(*LADDER)
    values = {name: each for name, each in (("a", (10, 11, 12)), ("b", b), ("c", c)) if each}
    found = [compare(ladder, step, record(**values)) for step in LADDER]
    assert verdict_of(found) == verdict
    if shown:
        assert weakest(found).step.better == shown


def test_the_step_that_is_shown_has_the_verdict():
    """b is negligibly better than a, which decides; c is rather worse than b, which does not."""
    ladder = ordering(*LADDER)
    values = record(a=(10.0, 10.1, 10.2), b=(10.05, 10.15, 10.25), c=(8, 9, 12))
    found = [compare(ladder, step, values) for step in LADDER]
    assert [each.verdict for each in found] == [DOES_NOT, UNDECIDED] and found[1].strength < found[0].strength
    assert weakest(found) is found[0]


def test_the_section(tmp_path):
    (tmp_path / "made_up.json").write_text(json.dumps(record(a=(10, 11, 12), b=(13, 14, 15), c=(13, 15, 17))))
    (tmp_path / "few.json").write_text(json.dumps(record(a=(10,), b=(13, 14, 15))))
    orderings = [
        ordering(),
        Ordering("a ladder", "A paper", "Table 2", {"digits": "made_up", "photographs": "gone"}, LADDER),
        Ordering("few seeds", "A paper", "Table 3", {"photographs": "few"}, (Step("b", "a"),)),
    ]
    text = section(orderings, compare_all(orderings, tmp_path))
    assert "| ordering | figure | paper | digits | photographs | source |\n" in text
    assert (
        "| b beats a | AP | +2.0 (40.0 → 42.0) | **appears**‡: +3.0 ± 0.8 (11.0 → 14.0) | not measured | "
        "A paper, Table 1 |\n"
    ) in text
    assert (
        "| a ladder | AP | +2.0 (40.0 → 42.0), the smallest of 2 | **undecided**‡: b → c: +1.0 ± 1.3 (14.0 → 15.0) | "
        "not measured | A paper, Table 2 |\n"
    ) in text
    assert (
        "| few seeds | AP | - | not measured | **undecided**‡: +4.0 (10.0 → 14.0, 1 seed) | A paper, Table 3 |\n"
    ) in text
    assert "1 of 3 orderings appear on at least one dataset (1 on digits, 0 on photographs)." in text
    steps = text.partition("### Steps")[2]
    assert (
        "| a ladder | b → c | +3.0 (42.0 → 45.0) | **undecided**‡: +1.0 ± 1.3 (14.0 → 15.0) | not measured |" in steps
    )
    assert "b beats a" not in steps


def test_orderings_of_the_repository_are_of_its_studies():
    """Where a dataset has the study, the study has the variants."""
    orderings = read_orderings(ROOT / "benchmarks" / "orderings.yaml")
    known = 0
    for each in orderings:
        for name in each.records.values():
            file = ROOT / "benchmarks" / "studies" / f"{name}.yaml"
            if file.is_file():
                variants = {variant.name for variant in load_study(file).variants}
                named = {name for step in each.steps for name in (step.better, step.worse)}
                assert named <= variants, (each.claim, named - variants)
                known += 1
    assert known >= len(orderings)


def test_variants_that_have_not_learned_to_leave_out_duplicates_are_marked():
    values = record(a=(10, 11, 12), b=(13, 14, 15))
    unknown = compare(ordering(), STEP, values)
    assert math.isnan(unknown.duplicates)
    assert "| **appears**‡: +3.0" in section([ordering()], [{"digits": [unknown]}])
    for added, mark in ((0.9, ""), (1.1, "†")):
        values["variants"]["a"]["result"] |= summarise([{"bbox/AP_NMS": each + added} for each in (10, 11, 12)])
        values["variants"]["b"]["result"] |= summarise([{"bbox/AP_NMS": each} for each in (13, 14, 15)])
        found = compare(ordering(), STEP, values)
        assert found.duplicates == pytest.approx(added)
        assert f"| **appears**{mark}: +3.0" in section([ordering()], [{"digits": [found]}])


ENTRY = {
    "claim": "c",
    "source": "s",
    "where": "w",
    "records": {"digits": "x"},
    "steps": [{"better": "b", "worse": "a", "paper": [2.0, 1.0]}],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figures": "AP"}, r"ordering 1 needs .*'claim'.* and may have .*'figure'.*; it has .*'figures'"),
        ({"steps": []}, "a list of `steps`"),
        ({"records": "x"}, "`records` by dataset"),
        ({"steps": [{"better": "b"}]}, "a step needs `better` and `worse`"),
        ({"steps": [{"better": "b", "worse": "a", "paper": [1.0]}]}, "`paper` must be two numbers"),
        (
            {"steps": [{"better": "b", "worse": "a", "paper": [1.0, 2.0]}]},
            r"\[1.0, 2.0\] are not in the order of a → b",
        ),
        ({"lower_is_better": True}, "not in the order"),
    ],
)
def test_a_mistake_in_the_orderings_is_named(tmp_path, changes, message):
    file = tmp_path / "orderings.yaml"
    file.write_text(yaml.safe_dump([{**ENTRY, **changes}]))
    with pytest.raises(ValueError, match=message):
        read_orderings(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="must be a list of orderings"):
        read_orderings(file)
