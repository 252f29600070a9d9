"""Which exceptions are mistakes of the user."""

import pytest

from detrx.engine.errors import user_error
from detrx.modeling import ContrastiveDenoising
from detrx.projects.h_detr import HybridBranch


@pytest.mark.parametrize("method", [ContrastiveDenoising, HybridBranch])
def test_checks_of_library_and_projects_are_mistakes_of_the_user(method: type):
    with pytest.raises(ValueError) as caught:
        method(num_queries=0)
    assert user_error(caught.value) == str(caught.value)


def test_failing_expressions_are_bugs():
    with pytest.raises(ValueError) as caught:
        HybridBranch(num_queries=1, weight=int("one"))
    assert user_error(caught.value) is None
