import json
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from matplotlib.image import imread

from detrx.analysis.study import Run, Variant, load_study
from detrx.analysis.study_figure import mean_curve, plot_study
from detrx.analysis.study_record import markdown_table, mean_cost, summarise
from detrx.analysis.study_runs import METRICS, average_recall, cost_of, curve_of, result_of
from detrx.cli import study as cli
from detrx.engine import load_config
from detrx.engine.output_folder import write_config
from detrx.engine.trained import build_model
from detrx.errors import UserError
from tests.coco.registered import coco, registering, write_images

SCRIPT = """
import json, pathlib, sys
values = dict(a.split("=") for a in sys.argv[1:] if "=" in a)
folder = pathlib.Path(values["train.output_dir"])
(folder / "calls").open("a").write("call\\n")
if values["train.seed"] == "13":
    sys.exit(3)
ap = float(values["ap"]) + int(values["train.seed"])
lines = [{"iteration": 0, "total_loss": 9.0}, {"iteration": 1, "total_loss": 4.0}]
lines.append({"iteration": 0, "bbox/AP": 1.0, "bbox/AP_NMS": 2.0})
lines.append({"iteration": 2, "bbox/AP": ap, "bbox/AP50": 2 * ap, "bbox/AP75": ap, "bbox/APs": 3.0})
lines[-1] |= {"bbox/APl": float("nan"), "bbox/AP-cup": 5.0, "bbox/AP_NMS": ap + 0.5}
lines += [{"iteration": 2 + i, "time": time, "data_time": 0.1} for i, time in enumerate((0.5, 9.0, 0.7))]
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
    assert first == {
        "bbox/AP": 11, "bbox/AP50": 22, "bbox/AP75": 11, "bbox/APs": 3, "bbox/AP_NMS": 11.5, "first_loss": 9,
        "last_loss": 4, "iterations": 2, "step_seconds": 0.7, "data_seconds": 0.1,
    }  # fmt: skip
    assert result_of(first_run, command) == first
    assert (first_run.folder / "calls").read_text().count("call") == 1
    assert first_run.folder == tmp_path / "out" / "a_b" / "seed1", "a comma would end the value of an override"
    (first_run.folder / "result.json").unlink()
    assert result_of(first_run, command) == first, "what is kept elsewhere is not repeated either"
    assert (first_run.folder / "calls").read_text().count("call") == 1
    with pytest.raises(UserError, match=r"of another run \(overrides: \['ap=10'\] -> \['ap=20'\]\)"):
        result_of(Run(Variant("a, b", "config.py", ("ap=20",)), 1, tmp_path / "out"), command)


def test_the_curve_of_a_run(tmp_path, command):
    run = Run(Variant("a", "config.py", ("ap=10",)), 1, tmp_path / "out", tmp_path / "kept")
    assert curve_of(run) is None and not (tmp_path / "kept").exists(), "not trained"
    result_of(run, command)
    curve = [{"iteration": 1, "AP": 1.0, "AP_NMS": 2.0}, {"iteration": 2, "AP": 11.0, "AP_NMS": 11.5}]
    assert curve_of(run) == curve
    (run.folder / "metrics.json").unlink()
    (run.folder / "result.json").unlink()
    assert curve_of(run) == curve, "kept elsewhere"
    kept = tmp_path / "kept" / "a" / "seed1.json"
    content = json.loads(kept.read_text())
    assert content.pop("curve") == curve and set(content) == {"run", "result"}
    kept.write_text(json.dumps(content))
    (run.folder / "result.json").unlink()
    assert curve_of(run) is None, "of a run from before curves were recorded"


def test_evaluations_without_detections_are_no_points(tmp_path):
    run = Run(Variant("a", "config.py", ()), 1, tmp_path)
    run.folder.mkdir(parents=True)
    lines = [{"iteration": 9, "total_loss": 1.0}, {"iteration": 4, "bbox/AP": float("nan")}]
    lines += [{"iteration": 9, "bbox/AP": 3.0}, {"iteration": 10, "bbox/AP": 3.5}]
    (run.folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    assert curve_of(run) == [{"iteration": 10, "AP": 3.5}]


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
    monkeypatch.setattr(cli, "result_of", lambda run, resources: result)
    costs = {3: {"parameters": 100, "flops": 2e9, "ms_per_image": None, "images": 4}, 4: None}
    monkeypatch.setattr(cli, "cost_of", lambda run, images, rounds, device: costs[run.seed])
    output = tmp_path / "out put"
    arguments = [str(study_file), "--output", str(output), "--seeds", "3", "4", "--variants", "x", "--rounds", "0"]
    cli.main(arguments)
    record = json.loads((output / "study.json").read_text(encoding="utf-8"))
    assert shlex.split(record["command"]) == ["python", "tools/study.py", *arguments]
    assert list(record["variants"]) == ["x"] and record["variants"]["x"]["seeds"] == [3, 4]
    assert record["variants"]["x"]["flops"] == 2e9 and record["cost"] == {"weights": "trained"}
    assert record["variants"]["x"]["costs"] == [costs[3], None]
    printed = capsys.readouterr().out
    assert "seed4/model_final.pth does not exist" in printed
    assert "first 4 images of the test loader. Means of fewer seeds than trained: GFLOPs of x (1 of 2)." in printed
    with pytest.raises(SystemExit, match="--seeds must be different whole numbers, 0 or more"):
        cli.main([*arguments, "--seeds", "3", "3"])
    with pytest.raises(SystemExit) as error:
        cli.main([*arguments, "--seeds", "-1"])
    assert error.value.code == 2


@pytest.fixture
def analysed(tmp_path, monkeypatch):
    """Runs a study whose two runs are finished; returns how often runs were analysed, and the record."""
    study = {"title": "t", "description": "d", "seeds": [1, 2], "config": "deformable_detr/deformable_detr_digits"}
    monkeypatch.setattr(cli, "cost_of", lambda *args: None)
    calls = []

    def analyse(args, config, overrides, weights, output, bad):
        assert config == study["config"] and args.score_threshold == 0.25 and args.num == 7
        calls.append((overrides, weights, output))
        return [SimpleNamespace(scalars=lambda: {"gini/activation": 0.4, "gini/gradient": float("nan")})]

    monkeypatch.setattr(cli.analyze_queries, "analyse", analyse)

    def run(analyses, weights=True):
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**study, "analyses": analyses, "variants": {"x": {}}}))
        for seed in study["seeds"]:
            each = Run(load_study(file).variants[0], seed, tmp_path / "out")
            each.folder.mkdir(parents=True, exist_ok=True)
            result = {**dict.fromkeys(METRICS, 1.0), "first_loss": 2.0, "last_loss": 1.0, "iterations": 3}
            if not each.result_files[0].exists():
                each.result_files[0].write_text(json.dumps({"run": each.signature, "result": result}))
            each.weights.touch()
            if not weights:
                each.weights.unlink()
        calls.clear()
        cli.main([str(file), "--output", str(tmp_path / "out")])
        return list(calls), json.loads((tmp_path / "out" / "study.json").read_text())["variants"]["x"]["result"]

    return run


def test_analyses_are_made_once_with_the_trained_weights(analysed, tmp_path, capsys):
    calls, result = analysed("--activation --score-threshold 0.25 --num 7")
    folders = [tmp_path / "out" / "x" / f"seed{seed}" for seed in (1, 2)]
    assert calls == [([f"train.seed={seed}"], str(folder / "model_final.pth"), folder / "queries")
                     for seed, folder in zip((1, 2), folders, strict=True)]  # fmt: skip
    assert result["gini/activation"]["values"] == [0.4, 0.4] and "gini/gradient" not in result
    printed = capsys.readouterr().out
    assert "| Gini, activation |" in printed and "| 0.40 ± 0.00 |" in printed
    assert "Gini: Gini coefficient over the queries; activation: confident detections of test images." in printed
    assert analysed("--activation --score-threshold 0.25 --num 7") == ([], result)
    calls, _ = analysed("--activation --supervision --score-threshold 0.25 --num 7")
    assert len(calls) == 2, "other arguments"
    calls, kept = analysed("--activation --score-threshold 0.25 --num 7", weights=False)
    assert not calls and kept["gini/activation"]["mean"] == pytest.approx(0.4)


def test_mistakes_in_the_analyses_are_found_before_training(analysed, monkeypatch):
    monkeypatch.setattr(cli, "train_all", None)
    with pytest.raises(SystemExit, match=r"study\.yaml: `analyses`: unrecognized arguments: --score-treshold"):
        analysed("--activation --score-treshold 0.25")
    with pytest.raises(SystemExit, match="`analyses`: give at least one analysis"):
        analysed("--num 7")


def test_a_failed_run_names_its_log(tmp_path, command):
    with pytest.raises(UserError, match=r"'a' with seed 13 ended with exit status 3: see .*stdout\.txt"):
        result_of(Run(Variant("a", "config.py", ("ap=10",)), 13, tmp_path / "out"), command)
    assert not list(tmp_path.rglob("result.json"))


def test_means_and_deviations():
    summary = summarise([{"bbox/AP": 10.0}, {"bbox/AP": 12.0}, {"bbox/AP": 14.0}])
    assert summary["bbox/AP"] == {"mean": 12.0, "std": 2.0, "values": [10.0, 12.0, 14.0]}
    assert summarise([{"bbox/AP": 10.0}])["bbox/AP"]["std"] is None


def row(**figures):
    results = [{**dict.fromkeys(("bbox/AP", "bbox/AP50", "bbox/AP75", "first_loss", "last_loss"), value), **figures}
               for value in (1.0, 2.0)]  # fmt: skip
    costs = {"parameters": 2_500_000, "flops": 3e9, "ms_per_image": None}
    measured = {**costs, "images": 20}
    return {"result": summarise(results), "seeds": [1, 2], "costs": [measured, measured], **costs}


def test_table_of_a_record_from_before_more_was_recorded():
    assert markdown_table({"variants": {"x": row()}, "size": [128, 96]}) == (
        "| variant | AP | AP50 | AP75 | loss first -> last | parameters (M) | GFLOPs | seeds |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| x | 1.5 ± 0.7 | 1.5 ± 0.7 | 1.5 ± 0.7 | 1.5 -> 1.5 | 2.50 | 3.000 | 2 |\n\n"
        "GFLOPs: with random weights on a random image of 128x96.\n"
    )


def test_table():
    more = {
        "bbox/APs": 20.0,
        "bbox/AP_NMS": 25.0,
        "bbox/AR1": 30.0,
        "bbox/AR10": 40.0,
        "bbox/AR100": 50.0,
        "step_seconds": 0.25,
    }
    rows = {"x": row(**more), "y": row() | {"flops": None, "ms_per_image": 4.0}}
    head, _, x, y, _, note = markdown_table({"variants": rows, "cost": {"weights": "trained"}}).split("\n")[:6]
    assert head == (
        "| variant | AP | AP50 | AP75 | AP_S | AP NMS | AR | loss first -> last | s/step | parameters (M) | GFLOPs | "
        "ms/image | seeds |"
    )
    assert "| 1.5 ± 0.7 | 20.0 ± 0.0 | 25.0 ± 0.0 | 50.0 ± 0.0 | 1.5 -> 1.5 | 0.250 | 2.50 | 3.000 | - | 2 |" in x
    assert "| 1.5 ± 0.7 | - | - | - | 1.5 -> 1.5 | - | 2.50 | - | 4.0 | 2 |" in y
    assert note == (
        "AP NMS: AP after non-maximum suppression; what it adds is the cost of duplicates. "
        "AR: average recall with at most 100 detections per image. s/step: median time of a training step, without "
        "evaluations and the first steps. GFLOPs and ms/image: mean and median with the trained weights on the first "
        "20 images of the test loader."
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((3, 3), "the first 3 images of the test loader."),
        ((1, 1), "the first image of the test loader."),
        ((5, 20), "the first 5 to 20 images, depending on the run, of the test loader."),
        ((5, None), "the first 5 images of the test loader. Means of fewer seeds than trained: GFLOPs of x (1 of "
         "2), ms/image of x (1 of 2)."),
    ],
)  # fmt: skip
def test_the_note_says_what_was_measured(images, said):
    costs = [None if each is None else {"parameters": 4, "flops": 2e9, "ms_per_image": 3.0, "images": each}
             for each in images]  # fmt: skip
    record = {"variants": {"x": row() | {"costs": costs, **mean_cost(costs)}}, "cost": {"weights": "trained"}}
    note = markdown_table(record).splitlines()[-1]
    assert note == f"GFLOPs and ms/image: mean and median with the trained weights on {said}"


def test_a_figure_that_a_seed_lacks_has_no_mean():
    assert "b" not in summarise([{"a": 1.0, "b": 2.0}, {"a": 3.0}])
    assert mean_cost([None, {"parameters": 4, "flops": 2, "ms_per_image": None}]) == {
        "parameters": 4, "flops": 2, "ms_per_image": None,
    }  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    """The name of a dataset of two images with one digit each."""
    write_images(tmp_path, [1, 2])
    annotations = [(index, 1, [10, 10, 20, 20], {}) for index in (1, 2)]
    with registering(tmp_path) as add:
        yield add("study_val", coco([1, 2], annotations, {1: "zero"}))


def test_average_recall_of_the_last_evaluation(tmp_path, dataset):
    run = Run(Variant("x", "dino/dino_digits", (f"dataloader.test.dataset.names={dataset}",)), 1, tmp_path)
    assert average_recall(run) == {}, "nothing was evaluated"
    file = run.folder / "inference" / "coco_instances_results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"image_id": 2, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]))
    recall = average_recall(run)
    assert list(recall) == [f"bbox/AR{each}" for each in (1, 10, 100, "s", "m", "l")] and recall["bbox/AR100"] == 50
    listed = Variant("x", "dino/dino_digits", (f"dataloader.test.dataset.names=[{dataset}]",))
    assert average_recall(replace(run, variant=listed)) == pytest.approx(recall, nan_ok=True)
    several = Variant("x", "dino/dino_digits", (f"dataloader.test.dataset.names=[{dataset},digits_val]",))
    assert average_recall(replace(run, variant=several)) == {}


def test_average_recall_of_several_evaluators(tmp_path, dataset):
    """The first one writes nothing; the second one counts with its own limit."""
    config = tmp_path / "config.py"
    config.write_text(
        "from detrx import model_zoo\nfrom detrx.d2.config import LazyCall as L\n"
        "from detrx.evaluation import COCOEvaluator\n"
        "cfg = model_zoo.get_config('dino/dino_digits.py')\n"
        "model, optimizer, lr_multiplier = cfg.model, cfg.optimizer, cfg.lr_multiplier\n"
        f"train, dataloader = cfg.train, cfg.dataloader\ndataloader.test.dataset.names = ['{dataset}']\n"
        f"dataloader.evaluator = [L(COCOEvaluator)(dataset_name='{dataset}', output_dir=None), "
        f"L(COCOEvaluator)(dataset_name='{dataset}', max_dets_per_image=7)]\n"
    )
    run = Run(Variant("x", str(config), ()), 1, tmp_path / "out")
    file = run.folder / "inference" / "coco_instances_results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"image_id": 2, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]))
    assert average_recall(run)["bbox/AR7"] == 50


def test_costs_are_those_of_the_trained_weights(tmp_path, dataset):
    """A routed decoder, with routers as they are drawn, and with others that let all queries pass."""
    overrides = (f"dataloader.test.dataset.names={dataset}",)
    run = Run(Variant("x", "qr_detr/qr_deformable_detr_digits", overrides), 1, tmp_path / "out", tmp_path / "kept")
    assert cost_of(run, 2, 0, "cpu") is None, "not trained"
    weights = build_model(load_config(run.variant.config, list(overrides)), "cpu").state_dict()
    run.folder.mkdir(parents=True)
    torch.save({"model": weights}, run.weights)
    routed = cost_of(run, 9, 1, "cpu")
    assert (routed["images"], routed["rounds"]) == (2, 1) and routed["ms_per_image"] > 0
    torch.save({"model": {key: value * (".router." not in key) for key, value in weights.items()}}, run.weights)
    assert cost_of(run, 9, 1, "cpu") == routed, "measured once"
    passing = cost_of(run, 1, 0, "cpu")
    assert passing["device"] == "cpu"
    assert passing["flops"] > routed["flops"] and passing["parameters"] == routed["parameters"]
    assert passing["ms_per_image"] is None
    run.weights.unlink()
    (run.folder / "result.json").unlink()
    assert cost_of(run, 5, 5, "cuda") == passing, "kept elsewhere"


def test_pictures(tmp_path):
    rows = {name: {"result": summarise([dict.fromkeys(METRICS, 10.0), dict.fromkeys(METRICS, 12.0)])} for name in "ab"}
    plot_study({"title": "t", "variants": rows}, tmp_path / "bars.png")
    for row in rows.values():
        row["result"] |= summarise([{"bbox/AP_NMS": 13.0}])
        row["curves"] = [CURVES[0], None]
    plot_study({"title": "t", "variants": rows}, tmp_path / "curves.png")
    (bars, curves) = (imread(tmp_path / f"{name}.png") for name in ("bars", "curves"))
    assert curves.shape[1] > 1.5 * bars.shape[1] and (bars != 1).any() and (curves[:, bars.shape[1] :] != 1).any()


CURVES = (
    [{"iteration": 5, "AP": 1.0, "AP_NMS": 3.0}, {"iteration": 10, "AP": 4.0, "AP_NMS": 5.0}],
    [{"iteration": 10, "AP": 6.0}],
)


def test_the_mean_curve_has_what_all_seeds_have():
    assert mean_curve(CURVES, "AP") == [(10, 5.0)]
    assert mean_curve(CURVES, "AP_NMS") == []
    assert mean_curve([CURVES[0], None], "AP_NMS") == [(5, 3.0), (10, 5.0)]
    assert mean_curve([], "AP") == []


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
    path.write_text(yaml.safe_dump({**content, "size": [800, 1333]}))
    assert load_study(path) == study, "an earlier file, with what has no effect any more"
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
        ({"variants": ["x"]}, "`variants` must be names"),
        ({"analyses": ["--activation"]}, "`analyses` must be a text"),
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
