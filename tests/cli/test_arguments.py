"""Values of arguments that no command can use: one line from argparse, and exit status 2."""

import importlib

import pytest
import torch

CONFIG = ["--config-file", "deformable_detr/deformable_detr_digits"]
WEIGHTS = ["--weights", "none.pth"]
ARGUMENTS = {
    "analyze_model": [*CONFIG],
    "analyze_queries": [*CONFIG, *WEIGHTS, "--output", "out"],
    "average_checkpoints": ["a.pth", "--output", "b.pth"],
    "benchmark_model": [*CONFIG],
    "check_dataset": [*CONFIG],
    "demo": [*CONFIG, *WEIGHTS, "--input", "a.png", "--output", "out"],
    "export_model": [*CONFIG, *WEIGHTS, "--output", "a.pt2"],
    "plot_metrics": ["out"],
    "report": ["out"],
    "study": ["study.yaml", "--output", "out"],
    "visualize_attention": [*CONFIG, *WEIGHTS, "--output", "out"],
    "visualize_data": [*CONFIG, "--output", "a.png"],
}
IMPOSSIBLE = [
    *[("analyze_model", *each) for each in (("--rounds", "-1"), ("--training-batch", "-1"), ("--size", "0", "8"))],
    *[("analyze_queries", *each) for each in (("--num", "0"), ("--num", "1.5"))],
    ("average_checkpoints", "--last", "0"),
    *[("benchmark_model", *each) for each in (("--batch-size", "0"), ("--rounds", "0"), ("--size", "-1", "8"))],
    ("check_dataset", "--examples", "0"),
    *[("demo", *each) for each in (("--num", "0"), ("--every", "0"), ("--score-threshold", "nan"))],
    *[("demo", *each) for each in (("--batch-size", "-1"), ("--columns", "0"), ("--score-threshold", "1.5"))],
    *[("export_model", *each) for each in (("--tolerance", "nan"), ("--tolerance", "-1"), ("--tolerance", "inf"))],
    ("export_model", "--size", "0", "0"),
    ("plot_metrics", "--smooth", "0"),
    ("report", "--num", "0"),
    *[("study", *each) for each in (("--jobs", "0"), ("--threads", "-2"), ("--rounds", "-1"), ("--seeds", "-1"))],
    *[
        ("visualize_attention", *each)
        for each in (("--num", "0"), ("--most", "0"), ("--heads", "a"), ("--queries", "a"))
    ],
    *[("visualize_data", *each) for each in (("--num", "0"), ("--seed", "-1"), ("--columns", "x"))],
    *[
        (tool, "--device", name)
        for tool in (
            "analyze_model",
            "analyze_queries",
            "benchmark_model",
            "demo",
            "export_model",
            "report",
            "visualize_attention",
        )
        for name in ("gpu", "cuda:99", "cpu:x", "")
    ],
]


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=" ".join)
def test_an_impossible_value(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tool, *arguments = case
    with pytest.raises(SystemExit) as error:
        importlib.import_module(f"detrx.cli.{tool}").main([*ARGUMENTS[tool], *arguments])
    *_, line = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and f"error: argument {arguments[0]}" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("detrx.cli.analyze_model").main([*CONFIG, "--device", "cuda"])
    assert "'cuda' is not here: torch sees no GPUs" in capsys.readouterr().err
