"""Preparations and runs of a study: what is trained, in which order, and with what of the machine."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from iopath.common.file_io import file_lock

from detrx.analysis import study_runs
from detrx.analysis.study import Preparation, Run, Variant, load_study
from detrx.analysis.study_runs import Resources, is_finished, prepare, result_of
from detrx.analysis.study_schedule import plan, train_all
from detrx.cli import study as cli
from detrx.engine import load_config
from detrx.engine.output_folder import write_config
from detrx.errors import UserError

CONFIG = "deformable_detr/deformable_detr_digits"
SCRIPT = """
import json, os, pathlib, sys
values = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = pathlib.Path(values["train.output_dir"])
(folder / "calls").open("a").write("call\\n")
(folder / "call.json").write_text(json.dumps([sys.argv[1:], os.environ.get("OMP_NUM_THREADS")]))
used = values.get("model.backbone.checkpoint_path")
if values.get("train.seed") == "13" or used and not pathlib.Path(used).exists():
    sys.exit(3)
lines = [{"iteration": 0, "total_loss": 9.0}, {"iteration": 1, "bbox/AP": 1.0, "bbox/AP50": 2.0, "bbox/AP75": 1.0}]
(folder / "metrics.json").write_text("\\n".join(map(json.dumps, lines)))
(folder / "model_final.pth").touch()
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return [sys.executable, str(tmp_path / "train.py")]


def called(folder):
    """Arguments and OMP_NUM_THREADS of the training that ran in a folder."""
    return json.loads((folder / "call.json").read_text())


def study_file(path, **changes):
    """A study with a backbone, a teacher that uses it, and one variant for each, and one that uses neither."""
    content = {
        "title": "t",
        "description": "d",
        "seeds": [1, 2],
        "config": CONFIG,
        "prepare": [
            {"output": "out/backbone", "config": CONFIG, "overrides": ["train.seed=7"]},
            {"output": "out/teacher", "config": CONFIG, "overrides": [using("out/backbone")]},
        ],
        "variants": {
            "plain": {},
            "pretrained": {"overrides": [using("out/backbone")]},
            "taught": {"overrides": [using("out/teacher")]},
        },
    }
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return path


def using(folder):
    return f"model.backbone.checkpoint_path={folder}/model_final.pth"


def test_preparations_come_before_what_uses_them(tmp_path, command):
    study = load_study(study_file(tmp_path / "study.yaml"))
    todo = plan(study, study.variants, [1], tmp_path / "runs", tmp_path / "kept")
    uses = {str(each): list(map(str, used)) for each, used in todo.uses.items()}
    assert uses == {
        "out/backbone": [],
        "out/teacher": ["out/backbone"],
        "'plain' with seed 1": [],
        "'pretrained' with seed 1": ["out/backbone"],
        "'taught' with seed 1": ["out/teacher"],
    }
    order = []

    def train(each):
        order.append(str(each))
        return prepare(each, command) if isinstance(each, Preparation) else result_of(each, command)

    results = train_all(todo.uses, train, jobs=3)
    assert [results[each]["bbox/AP"] for each in todo.runs] == [1, 1, 1]
    assert set(order[:2]) == {"out/backbone", "'plain' with seed 1"}
    assert order.index("out/teacher") < order.index("'taught' with seed 1")
    kept = json.loads((tmp_path / "kept" / "prepare" / "out_backbone.json").read_text())
    assert kept["run"] == {"config": CONFIG, "overrides": ["train.seed=7"]} and kept["result"]["bbox/AP"] == 1


def test_what_is_finished_or_not_needed_is_not_trained(tmp_path, command):
    study = load_study(study_file(tmp_path / "study.yaml"))
    plain, pretrained, taught = study.variants

    def names(*variants):
        return [str(each) for each in plan(study, variants, [1], tmp_path / "runs", None).uses]

    assert names(plain) == ["'plain' with seed 1"]
    assert names(pretrained) == ["out/backbone", "'pretrained' with seed 1"]
    (tmp_path / "out" / "teacher").mkdir(parents=True)
    (tmp_path / "out" / "teacher" / "model_final.pth").touch()
    assert names(taught) == ["out/teacher", "'taught' with seed 1"], "what a finished teacher was trained with"
    prepare(Preparation(Variant("out/teacher", CONFIG, ())), command)
    assert not (tmp_path / "out" / "teacher" / "call.json").exists()
    (tmp_path / "out" / "teacher" / "metrics.json").write_text('{"iteration": 0, "bbox/AP": 1.0}\n')
    prepare(Preparation(Variant("out/teacher", CONFIG, ())), command)
    assert not (tmp_path / "out" / "teacher" / "result.json").exists(), "nothing is known of weights from elsewhere"
    result_of(Run(taught, 1, tmp_path / "runs"), command)
    assert names(taught) == ["'taught' with seed 1"]


def test_a_preparation_with_other_settings_is_an_error(tmp_path, command):
    """Also if its weights exist: studies that share it must mean the same."""
    first, second = (
        Preparation(Variant("out/backbone", CONFIG, (f"train.max_iter={number}", "optimizer.lr=0.5")))
        for number in (7, 8)
    )
    first.folder.mkdir(parents=True)
    first.weights.touch()
    write_config(load_config(CONFIG, first.overrides), str(first.folder / "config.yaml"))
    prepare(first, command)
    with pytest.raises(UserError, match=r"the run of out/backbone began with other settings .*max_iter: 7 -> 8\)"):
        prepare(second, command)


def test_a_changed_preparation_of_finished_runs_is_an_error(tmp_path, command):
    first, second = ({"output": "out/backbone", "config": CONFIG, "overrides": [f"train.seed={n}"]} for n in (7, 8))
    variants = {"plain": {}, "pretrained": {"overrides": [using("out/backbone")]}}

    def planned(preparation, *chosen):
        study = load_study(study_file(tmp_path / "study.yaml", prepare=[preparation], variants=variants))
        named = [each for each in study.variants if each.name in chosen]
        return plan(study, named, [1], tmp_path / "runs", None)

    for each in planned(first, *variants).uses:
        prepare(each, command) if isinstance(each, Preparation) else result_of(each, command)
    assert len(planned(second, "plain").runs) == 1
    with pytest.raises(UserError, match=r"result\.json is of another run \(overrides: .*seed=7.* -> .*seed=8"):
        planned(second, "pretrained")


def test_studies_that_run_at_once_train_what_they_share_once(tmp_path, command, monkeypatch):
    """However long the other one takes."""

    def impatient(path):
        lock = file_lock(path)
        lock.timeout = 0
        return lock

    monkeypatch.setattr(study_runs, "file_lock", impatient)
    shared = Preparation(Variant("out/backbone", CONFIG, ()))
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(prepare, shared, command) for _ in range(2)]:
            done.result()
    assert (shared.folder / "calls").read_text() == "call\n"


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path, command):
    backbone = {"output": "out/backbone", "config": CONFIG, "overrides": ["train.seed=13"]}
    file = study_file(tmp_path / "study.yaml", prepare=[backbone], variants={
        "pretrained": {"overrides": [using("out/backbone")]}, "bad": {"overrides": ["train.seed=13"]}, "good": {},
    })  # fmt: skip
    study = load_study(file)
    todo = plan(study, study.variants, [1], tmp_path / "runs", None)

    def train(each):
        return prepare(each, command) if isinstance(each, Preparation) else result_of(each, command)

    with pytest.raises(UserError) as error:
        train_all(todo.uses, train, jobs=1)
    number, _, errors = str(error.value).partition(" failed: ")
    assert number == "3 of 4 trainings"
    assert sorted(errors.split("; ")) == [
        "'pretrained' with seed 1 needs out/backbone",
        f"training of 'bad' with seed 1 ended with exit status 3: see {tmp_path}/runs/bad/seed1/stdout.txt",
        "training of out/backbone ended with exit status 3: see out/backbone/stdout.txt",
    ]
    assert is_finished(Run(Variant("good", CONFIG, ()), 1, tmp_path / "runs"))


def test_as_many_run_at_once_as_asked_for():
    runs = [Run(Variant("a", CONFIG, ()), seed, Path()) for seed in range(6)]
    lock, now, most = threading.Lock(), 0, 0

    def train(run):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return run.seed

    assert sorted(train_all(dict.fromkeys(runs, ()), train, 3).values()) == list(range(6))
    assert most == 3


def test_what_a_run_gets_of_the_machine_is_not_part_of_it(tmp_path, command):
    run = Run(Variant("a", CONFIG, ("train.max_iter=3",)), 1, tmp_path / "out")
    result_of(run, command, Resources(threads=2, device="cuda", workers=4))
    arguments, threads = called(run.folder)
    assert arguments[-3:] == ["train.device=cuda", "dataloader.train.num_workers=4", "dataloader.test.num_workers=4"]
    assert threads == "2"
    stored = json.loads((run.folder / "result.json").read_text())
    assert stored["run"] == {"config": CONFIG, "overrides": ["train.max_iter=3"], "seed": 1}
    cfg = load_config(CONFIG, [*run.overrides, "train.device=cuda", "dataloader.train.num_workers=4"])
    del cfg.dataloader.train.mapper.cache_mib  # as before there were caches
    write_config(cfg, str(run.folder / "config.yaml"))
    assert result_of(run, command)["bbox/AP"] == 1, "begun on another device, and continued here"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Resources()),
        (["--device", "cpu", "--workers", "0"], Resources(None, "cpu", 0)),
        (["--jobs", "2"], Resources(4)),
        (["--jobs", "99"], Resources(1)),
        (["--jobs", "2", "--threads", "3"], Resources(3)),
    ],
)
def test_jobs_share_the_cores(monkeypatch, arguments, expected):
    monkeypatch.setattr(cli.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cli.resources_of(cli.parse_args(["study.yaml", "--output", "out", *arguments])) == expected


def test_dry_run(tmp_path, command, capsys, monkeypatch):
    file = study_file(tmp_path / "study.yaml")
    plain = Run(load_study(file).variants[0], 1, tmp_path / "runs")
    result_of(plain, command)
    (tmp_path / "runs" / "pretrained" / "seed1").mkdir(parents=True)
    (tmp_path / "runs" / "pretrained" / "seed1" / "last_checkpoint").touch()
    monkeypatch.setattr(cli, "train_all", None)
    cli.main([str(file), "--output", str(tmp_path / "runs"), "--seeds", "1", "--dry-run"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(*row[:1], row[-3], row[-2]) for row in rows[1:]] == [
        ("preparation", "train", "-"),
        ("preparation", "train", "out/backbone"),
        ("'plain'", "finished", "-"),
        ("'pretrained'", "begun", "out/backbone"),
        ("'taught'", "train", "out/teacher"),
    ]
    assert not (tmp_path / "runs" / "study.json").exists()


@pytest.mark.parametrize(
    ("prepare_", "message"),
    [
        ({"output": "x"}, "`prepare` must be a list of trainings"),
        ([{"output": "out/backbone"}], "`prepare` needs `output` and `config`, and may have `overrides`, got"),
        (
            [{"output": "out/backbone", "config": CONFIG, "overrides": "a=1"}],
            "out/backbone: `overrides` must be a list",
        ),
        ([{"output": "out/backbone", "config": CONFIG}] * 2, "has the output out/backbone twice"),
        ([{"output": "out/unused", "config": CONFIG}], "nothing uses out/unused/model_final.pth"),
        (
            [{"output": "out/backbone", "config": CONFIG, "overrides": [using("out/backbone")]}],
            "`prepare`: out/backbone uses out/backbone",
        ),
        (
            [
                {"output": "out/a", "config": CONFIG, "overrides": [using("out/b")]},
                {"output": "out/b", "config": CONFIG, "overrides": [using("out/a")]},
            ],
            "`prepare`: out/(a uses out/b uses out/a|b uses out/a uses out/b)$",
        ),
        ([{"output": "out/backbone", "config": "nowhere.py"}], "config nowhere.py of out/backbone does not exist"),
    ],
)
def test_preparations_that_cannot_be(tmp_path, prepare_, message):
    with pytest.raises((UserError, FileNotFoundError), match=message):
        load_study(study_file(tmp_path / "study.yaml", prepare=prepare_))
