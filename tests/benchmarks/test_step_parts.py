import runpy
import time

import pytest
import torch
from torch.profiler import ProfilerActivity, profile


@pytest.fixture
def script(request, monkeypatch):
    folder = request.config.rootpath / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    return runpy.run_path(str(folder / "step_parts.py"))


def test_a_part_inside_of_another_one_does_not_count_for_it(script, monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 7.0, 8.0])
    monkeypatch.setattr(time, "process_time", lambda: next(now))
    clock = script["Clock"]()
    with clock.part("decoder"), clock.part("heads"):
        pass
    with clock.part("decoder"):
        pass
    assert clock.times == {"decoder": 1000.0 + 4000.0 + 1000.0, "heads": 2000.0}


def test_the_backward_pass_counts_for_the_part_that_ran_forward(script):
    clock = script["Clock"]()
    small, large = torch.nn.Linear(4, 4), torch.nn.Linear(1024, 1024)
    clock.watch(small, "forward", "small")
    clock.watch(large, "forward", "large")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        loss = small(torch.randn(4, 4)).sum() + large(torch.randn(512, 1024)).sum()
        loss.backward()
    times = script["backward_by_part"](list(profiler.events()))
    assert set(times) == {"small", "large", ""}
    assert times["large"] > 5 * times["small"] > 0
