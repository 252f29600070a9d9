"""Which exceptions are mistakes of the user."""

import pytest
from torch.utils.data import DataLoader, Dataset

from detrx.errors import InvalidInputError, UnknownNameError, user_message
from detrx.modeling import ContrastiveDenoising
from detrx.projects.h_detr import HybridBranch


@pytest.mark.parametrize("method", [ContrastiveDenoising, HybridBranch])
def test_checks_of_library_and_projects_are_mistakes_of_the_user(method: type):
    with pytest.raises(ValueError) as caught:
        method(num_queries=0)
    assert user_message(caught.value) == str(caught.value)


def test_failing_expressions_are_bugs():
    with pytest.raises(ValueError) as caught:
        HybridBranch(num_queries=1, weight=int("one"))
    assert user_message(caught.value) is None


class _Faulty(Dataset):
    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidInputError("image: cannot\nbe read"), "image: cannot\nbe read"),
        (UnknownNameError("no such name"), "no such name"),
        (InvalidInputError("a cause, InvalidInputError: b"), "a cause, InvalidInputError: b"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "[Errno 2] No such file or directory: 'a.png'"),
        (ValueError("a bug"), None),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_in_a_loading_process(error: Exception, message: str | None, workers: int):
    with pytest.raises(type(error)) as caught:
        list(DataLoader(_Faulty(error), num_workers=workers))
    assert user_message(caught.value) == message


def test_the_types_are_those_that_callers_catch():
    assert issubclass(InvalidInputError, ValueError) and issubclass(UnknownNameError, KeyError)
    assert str(UnknownNameError("plain text")) == "plain text"
