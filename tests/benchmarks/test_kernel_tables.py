"""The tables of docs/kernels.md."""

import json

import pytest


@pytest.fixture
def kernel_tables(_benchmarks):
    import kernel_tables

    return kernel_tables


def test_the_page_shows_them(kernel_tables):
    text = kernel_tables.DOCUMENT.read_text()
    assert kernel_tables.place(text, kernel_tables.tables()) == text, "run: python benchmarks/kernel_tables.py --write"


def test_a_table_goes_to_its_place(kernel_tables):
    text = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n"
    assert kernel_tables.place(text, {"x": "new"}) == "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n"
    for page in ("nothing", "<!-- begin: x -->", "<!-- end: x -->"):
        with pytest.raises(ValueError, match="no place for the table 'x'"):
            kernel_tables.place(page, {"x": "new"})


def report(folder, stage: str, device: str = "cuda", tiny: bool = False, **tables: list) -> None:
    content = {"device": device, "tiny": tiny, "machine": {"gpu": "NVIDIA H100"}, "tables": tables}
    (folder / f"{stage}.json").write_text(json.dumps(content))


def test_nothing_measured_is_said(kernel_tables, tmp_path):
    assert kernel_tables.measured_tables(tmp_path) == kernel_tables.NOT_MEASURED
    report(tmp_path, "training", device="cpu", steps=[{"training step": "plain", "ms": 1.0}])
    report(tmp_path, "layers", tiny=True, decoder=[{"dtype": "float32"}])
    assert kernel_tables.measured_tables(tmp_path) == kernel_tables.NOT_MEASURED


def test_measured(kernel_tables, tmp_path):
    case = {"shape": "encoder", "batch": 1, "dtype": "bfloat16", "form": "fused"}
    ours = {"detrx fwd ms": 0.5, "detrx fwd+bwd ms": 2.0, "fwd expected ms": 0.4, "fwd+bwd expected ms": 1.5}
    short = case | ours | {"published fwd ms": 2.0, "published fwd+bwd ms": 8.0}
    theirs = {"deformops triton fwd ms": 0.75, "deformops cuda fwd ms": 0.6, "deformops triton fwd+bwd ms": 2.5}
    report(tmp_path, "speed", attention=[short])
    report(tmp_path, "tables", attention=[short | {"detrx fwd ms": 9.0}, short | {"batch": 4}])
    report(tmp_path, "deformops", attention=[case | ours | theirs])
    report(tmp_path, "training", steps=[{"training step": "plain", "ms": 101.5, "matching %": 2.5}])
    attention, training = kernel_tables.measured_tables(tmp_path).split("\n\n")
    head, _, first, second = attention.splitlines()
    assert head.startswith(
        "| GPU | shape | forward ms | expected ms | x published | x deformops | forward + backward ms"
    )
    assert first == "| NVIDIA H100 | encoder x 1, bfloat16, fused | 0.5 | 0.4 | 4 | 1.2 | 2 | 1.5 | 4 | 1.25 |"
    assert second == "| NVIDIA H100 | encoder x 4, bfloat16, fused | 0.5 | 0.4 | 4 | - | 2 | 1.5 | 4 | - |"
    assert training.splitlines()[2] == "| plain | 102 | - | - | - | 2.5 | - |"
