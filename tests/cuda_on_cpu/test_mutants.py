"""Faults to plant: each still fits the sources, and none is there twice. `make mutants` tries them."""

import re

import pytest

from tests.cuda_on_cpu.build import ROOT
from tests.cuda_on_cpu.mutants import MUTANTS, TABLE, Result, table
from tests.cuda_on_cpu.planted import Mutant, MutantError


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_fits_the_sources(mutant):
    source = (ROOT / "csrc" / mutant.file).read_text()
    assert mutant.apply(source) != source
    assert (ROOT / mutant.test).is_file()


def test_one_of_each():
    names = [(mutant.file, mutant.what) for mutant in MUTANTS]
    assert len(set(names)) == len(names)


def test_recorded():
    """MUTANTS.md has the faults that there are."""
    rows = re.findall(r"^\| (?!fault |---)(.*?) \|", TABLE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(mutant.what for mutant in MUTANTS)


def test_a_text_that_does_not_fit():
    mutant = Mutant("fault", "file.cu", "a", "b")
    assert mutant.apply("xay") == "xby"
    with pytest.raises(MutantError, match=r"'fault': the text to replace does not occur in file\.cu:\na"):
        mutant.apply("xyz")
    with pytest.raises(MutantError, match=r"occurs 2 times in file\.cu"):
        mutant.apply("aa")


def test_without():
    mutant = Mutant.without("fault", "file.cu", "b", after="a", before="c")
    assert mutant.apply("abcb") == "acb"


def test_table():
    found, redundant = Mutant("one", "a.cu", "x", "y"), Mutant("two", "a.cu", "x", "y", reason="it is redundant")
    text = table([Result(found, "race", "test_it"), Result(redundant, "", "")], seconds=120)
    assert "1 of 2 faults are found by the emulated tests (2 minutes)" in text
    assert "| one | race | `test_it` |" in text and "| two | not found: it is redundant |  |" in text
