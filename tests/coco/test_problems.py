import pytest

from detrx.coco.problems import printable


@pytest.mark.parametrize("text", ["a.png", "0001.jpg", "größe", "1 of 2", "infinite", "-", "e5", "one 1"])
def test_text_is_printed_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "128",
        "-1",
        "1.5",
        "1e3",
        ".5",
        "nan",
        "Inf",
        "-infinity",
        "1_000",
        "",
        " ",
        " a",
        "None",
        "null",
        "true",
        "False",
    ]
    + ["[1, 2]", '{"a": 1}', "(1, 2)", "'a'", '"a"', "a\nb", "\x1b[31m"],
)
def test_text_that_could_be_another_value_is_quoted(text):
    assert printable(text) == repr(text)


def test_other_values_and_lengths():
    assert [printable(value) for value in (128, 1.5, None, True, [1, "2"])] == [
        "128",
        "1.5",
        "None",
        "True",
        "[1, '2']",
    ]
    assert len(printable("x" * 1000)) == len(printable([0] * 1000)) == 100
