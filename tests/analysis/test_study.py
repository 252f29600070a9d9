import sys

import pytest
import yaml

from detrx.analysis.study import METRICS, Run, Variant, load_study, markdown_table, plot_study, result_of, summarise
from detrx.errors import UserError

SCRIPT = """
import json, pathlib, sys
values = dict(a.split("=") for a in sys.argv[1:] if "=" in a)
folder = pathlib.Path(values["train.output_dir"])
(folder / "calls").open("a").write("call\\n")
if values["train.seed"] == "13":
    sys.exit(3)
ap = float(values["ap"]) + int(values["train.seed"])
lines = [{"iteration": 0, "total_loss": 9.0}, {"iteration": 1, "total_loss": 4.0}]
lines.append({"iteration": 1, "bbox/AP": ap, "bbox/AP50": 2 * ap, "bbox/AP75": ap})
(folder / "metrics.json").write_text("\\n".join(map(json.dumps, lines)))
"""


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return [sys.executable, str(path)]


def test_a_finished_run_is_not_repeated(tmp_path, command):
    first_run = Run(Variant("a, b", "config.py", ("ap=10",)), 1, tmp_path / "out", tmp_path / "kept")
    first = result_of(first_run, command)
    assert first["bbox/AP"] == 11 and first["first_loss"] == 9 and first["last_loss"] == 4 and first["iterations"] == 2
    assert result_of(first_run, command) == first
    assert (first_run.folder / "calls").read_text().count("call") == 1
    assert first_run.folder == tmp_path / "out" / "a_b" / "seed1", "a comma would end the value of an override"
    (first_run.folder / "result.json").unlink()
    assert result_of(first_run, command) == first, "what is kept elsewhere is not repeated either"
    assert (first_run.folder / "calls").read_text().count("call") == 1
    with pytest.raises(UserError, match="of another run"):
        result_of(Run(Variant("a, b", "config.py", ("ap=20",)), 1, tmp_path / "out"), command)


def test_a_failed_run_names_its_log(tmp_path, command):
    with pytest.raises(UserError, match=r"'a' with seed 13 ended with exit status 3: see .*stdout\.txt"):
        result_of(Run(Variant("a", "config.py", ("ap=10",)), 13, tmp_path / "out"), command)
    assert not list(tmp_path.rglob("result.json"))


def test_means_and_deviations():
    summary = summarise([{"bbox/AP": 10.0}, {"bbox/AP": 12.0}, {"bbox/AP": 14.0}])
    assert summary["bbox/AP"] == {"mean": 12.0, "std": 2.0, "values": [10.0, 12.0, 14.0]}
    assert summarise([{"bbox/AP": 10.0}])["bbox/AP"]["std"] is None


def test_table():
    keys = ("bbox/AP", "bbox/AP50", "bbox/AP75", "first_loss", "last_loss")
    row = {"result": summarise([dict.fromkeys(keys, 1.0), dict.fromkeys(keys, 2.0)]), "seeds": [1, 2]}
    row |= {"parameters": 2_500_000, "flops": 3e9, "ms_per_image": 4.0}
    assert "| x | 1.5 ± 0.7 | 1.5 ± 0.7 | 1.5 ± 0.7 | 1.5 -> 1.5 | 2.50 | 3.000 | 4.0 | 2 |" in markdown_table(
        {"variants": {"x": row}}
    )


def test_picture(tmp_path):
    rows = {name: {"result": summarise([dict.fromkeys(METRICS, 10.0), dict.fromkeys(METRICS, 12.0)])} for name in "ab"}
    plot_study({"title": "t", "variants": rows}, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 5000


def test_study_files(tmp_path):
    config = tmp_path / "a.py"
    config.write_text("")
    path = tmp_path / "study.yaml"
    content = {
        "title": "t",
        "description": "d",
        "seeds": [1, 2],
        "overrides": ["a=1"],
        "variants": {"x": {"config": str(config), "overrides": ["b=2"]}},
    }
    path.write_text(yaml.safe_dump(content))
    study = load_study(path)
    assert study.variants == (Variant("x", str(config), ("a=1", "b=2")),) and study.seeds == (1, 2)
    path.write_text(yaml.safe_dump({**content, "config": str(config), "variants": {"x": {}}}))
    assert load_study(path).variants == (Variant("x", str(config), ("a=1",)),)
    path.write_text(yaml.safe_dump({**content, "variants": {"x": {}}}))
    with pytest.raises(ValueError, match="neither variant 'x' nor the study has a `config`"):
        load_study(path)
    path.write_text(yaml.safe_dump({**content, "sedes": [1]}))
    with pytest.raises(ValueError, match="sedes"):
        load_study(path)
    path.write_text(yaml.safe_dump({**content, "variants": {"x": {"config": "nowhere.py"}}}))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py of 'x'"):
        load_study(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
        load_study(tmp_path / "missing.yaml")


def test_studies_of_the_repository_are_valid(request):
    root = request.config.rootpath
    for path in root.glob("benchmarks/studies/*.yaml"):
        assert load_study(path).variants, path
