"""python -m detrx.collect_env: a report also where things are missing."""

import os
import subprocess
import sys


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, *code.split()],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_report():
    report = run("-m detrx.collect_env", DETRX_DISABLE_EXT="1", DETRX_D2="embedded")
    lines = dict(line.split("  ", 1) for line in report.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert lines["Detectron2 provider"] == "embedded"
    assert lines["kernel ms_deform_attn"].startswith("none")
    assert "DETRX_D2=embedded" in lines["environment"]


def test_report_survives_a_broken_installation():
    report = run("-m detrx.collect_env", DETRX_D2="nonsense", CUDA_HOME="/nonexistent")
    assert "unknown (InvalidInputError" in report and "unknown (FileNotFoundError" in report
