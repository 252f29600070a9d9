import json
import shlex
import sys

import pytest
import yaml

from detrx.analysis.study import METRICS, Run, Variant, load_study, markdown_table, plot_study, result_of, summarise
from detrx.cli import study as cli
from detrx.engine import load_config
from detrx.engine.output_folder import write_config
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
    with pytest.raises(UserError, match=r"of another run \(overrides: \['ap=10'\] -> \['ap=20'\]\)"):
        result_of(Run(Variant("a, b", "config.py", ("ap=20",)), 1, tmp_path / "out"), command)


def test_an_interrupted_run_keeps_the_settings_that_it_began_with(tmp_path, command):
    """The folder of a run that was killed: a config, and no result."""

    def run(*overrides, seed=1):
        variant = Variant("größe", "deformable_detr/deformable_detr_digits", ("+ap=10", *overrides))
        return Run(variant, seed, tmp_path / "out")

    begun = run("optimizer.lr=0.5")
    begun.folder.mkdir(parents=True)
    write_config(load_config(begun.variant.config, begun.overrides), str(begun.folder / "config.yaml"))
    message = (
        r"the run of 'größe' with seed 1 began with other settings \(optimizer\.lr: 0\.5 -> 0\.25\): change them back"
    )
    with pytest.raises(UserError, match=message):
        result_of(run("optimizer.lr=0.25"), command)
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.5 -> .*; train\.max_iter: \d+ -> 7"):
        result_of(run("train.max_iter=7"), command)
    assert not (begun.folder / "calls").exists()
    code = SCRIPT.replace('values["ap"]', "10").replace('a.split("=")', 'a.split("=", 1)')
    (tmp_path / "train.py").write_text(code)
    assert result_of(run("optimizer.lr=0.5", "train.device=meta"), command)["bbox/AP"] == 11
    with pytest.raises(UserError, match="began with other settings"):  # finished or not
        result_of(run("optimizer.lr=0.25"), command)


def test_the_recorded_command_has_all_arguments(tmp_path, monkeypatch, capsys):
    study_file = tmp_path / "größe (neu).yaml"
    study_file.write_text("title: t\ndescription: d\nseeds: [1]\nconfig: deformable_detr/deformable_detr_digits\n"
                          "variants: {x: {}, y: {}}\n", encoding="utf-8")  # fmt: skip
    result = {**dict.fromkeys(METRICS, 1.0), "first_loss": 2.0, "last_loss": 1.0, "iterations": 3}
    monkeypatch.setattr(cli, "result_of", lambda run, threads: result)
    output = tmp_path / "out put"
    arguments = [str(study_file), "--output", str(output), "--seeds", "3", "4", "--variants", "x", "--rounds", "0"]
    cli.main(arguments)
    record = json.loads((output / "study.json").read_text(encoding="utf-8"))
    assert shlex.split(record["command"]) == ["python", "tools/study.py", *arguments]
    assert list(record["variants"]) == ["x"] and record["variants"]["x"]["seeds"] == [3, 4]
    with pytest.raises(SystemExit, match="--seeds must be different whole numbers, 0 or more"):
        cli.main([*arguments, "--seeds", "3", "3"])
    with pytest.raises(SystemExit) as error:
        cli.main([*arguments, "--seeds", "-1"])
    assert error.value.code == 2


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
    for changes, message in (
        ({"seeds": [1, 1]}, "`seeds` must be different whole numbers"),
        ({"seeds": [-1]}, "`seeds` must be different whole numbers"),
        ({"seeds": 3}, "`seeds` must be different whole numbers"),
        ({"size": [0, 8]}, "`size` must be"),
        ({"variants": ["x"]}, "`variants` must be names"),
        ({"overrides": [{"a": 1}]}, "`overrides` must be a list of texts KEY=VALUE"),
        ({"variants": {"x": {"overrides": "a=1"}}}, "variant 'x': `overrides` must be a list of texts KEY=VALUE"),
        ({"variants": {"a, b": {}, "a b": {}}}, r"variants '.*' and '.*' would share the folder a_b"),
    ):
        path.write_text(yaml.safe_dump({**content, "config": str(config), **changes}))
        with pytest.raises(ValueError, match=message):
            load_study(path)
    path.write_bytes("title: größe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"study\.yaml cannot be read as YAML: .*utf-8"):
        load_study(path)
    path.write_text("title: t\ndescription: d\nseeds: [1]\nvariants:\n  x: {}\n  y: {}\n  x: {config: other}\n")
    with pytest.raises(ValueError, match=r"study\.yaml cannot be read as YAML: 'x' twice in .*line 7"):
        load_study(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
        load_study(tmp_path / "missing.yaml")


def test_studies_of_the_repository_are_valid(request):
    root = request.config.rootpath
    for path in root.glob("benchmarks/studies/*.yaml"):
        assert load_study(path).variants, path
