"""The benchmark scripts run and write what they measured; at these sizes the figures mean nothing."""

import json
import runpy
import sys

import pytest
import torch

TINY = {
    "training_step": "--size 128 --batch 1 --queries 10 --hybrid-queries 20 --rounds 1",
    "distillation_step": "--size 64 --batch 1 --rounds 1 --configs d3etr/d3etr_detr_digits.py",
    "moe": "--shapes decoder --rounds 1",
    "query_routing": "--queries 16 --batch 1 --rounds 1",
    "routed_decoder": "--size 64 --queries 16 --rounds 1",
}


@pytest.mark.parametrize("name", TINY)
def test_the_script_writes_its_figures(name, request, tmp_path, monkeypatch):
    folder = request.config.rootpath / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--threads", str(torch.get_num_threads()), *TINY[name].split()])
    runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
    (written,) = tmp_path.glob(f"{name}*_cpu_float32.json")
    figures = json.loads(written.read_text())
    assert figures["machine"]["torch"] == torch.__version__
    tables = [value for value in figures.values() if isinstance(value, list) and value]
    times = [value for table in tables for row in table if isinstance(row, dict) for value in row.values()]
    assert tables and all(value > 0 for value in times if isinstance(value, float))
