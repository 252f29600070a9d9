"""The modules of `benchmarks` can be imported."""

import pytest


@pytest.fixture(autouse=True)
def _benchmarks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
