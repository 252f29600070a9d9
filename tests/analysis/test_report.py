"""The report of a run: what is in the page, what is missing, and what is wrong with a folder."""

import json
import re
from html import escape

import pytest
from plotly.offline import get_plotlyjs

from detrx.analysis.report import Options, build_report, read_run
from detrx.analysis.report.run_folder import Log, config_file_of, parse_log
from tests.analysis.report_runs import EVIL, LOG, PLAIN, SECTIONS, Page, small_dataset, write_run

ON_DISK = Options(use_model=False)


@pytest.fixture
def folder(tmp_path):
    with small_dataset(tmp_path / "images") as name:
        yield write_run(tmp_path / "run", name)


def report(folder, options=ON_DISK):
    html, missing = build_report(read_run(folder), options)
    return Page(html), [part.why for part in missing]


def facts(page, section):
    return re.sub(r"\s+", " ", page.sections[section])


def test_complete_page(folder):
    page, missing = report(folder)
    assert set(SECTIONS) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert missing == ["The model was not run (--no-model)."]  # queries
    tags = [tag for tag, _ in page.tags]
    assert {tags.count(tag) for tag in ("h1", "main", "nav", "header", "footer")} == {1}
    assert tags.count("h2") == len(SECTIONS) - 1
    targets = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert targets <= set(page.ids)


def test_nothing_is_loaded_from_elsewhere(folder):
    page, _ = report(folder)
    for tag, attributes in page.tags:
        for key in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (tag, key, value)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_names_are_text(folder):
    """Class names, file names and paths with markup in them."""
    page, _ = report(folder)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not [tag for tag, _ in page.tags if tag == "i"]
    plotly, *own = (script.strip() for script in page.scripts if script.strip())
    assert plotly == get_plotlyjs().strip() and "alert" not in "".join(own)
    assert [row for row in page.rows["ap"] if row[0] == EVIL]
    assert "im<i>1.png: 2 correct, 0 wrong, 0 missed" in page.sections["detections"]
    assert f"Trained on{EVIL}" in page.sections["run"]
    assert "<b>new.py" in page.sections["run"] and "Some <i>CPU</i>" in page.sections["run"]


def test_head(folder):
    page, _ = report(folder)
    head = facts(page, "summary")
    for text in ("<b>new", "AP 41.2", "AP50 60", "Iterations 200", "Duration 24 h 3 min"):
        assert text in head.replace("AP4", "AP 4").replace("AP506", "AP50 6").replace("s200", "s 200").replace(
            "n24", "n 24"
        )
    run = facts(page, "run")
    assert "MrDETR" in run and "resnet18" in run and "3 layers" in run
    assert "python tools/lazyconfig_train_net.py --config-file '<b>new.py' optimizer.lr=0.1" in run
    assert "torch 2.11.0" in run and "top_k: 6" in run


def test_tables(folder):
    page, _ = report(folder)
    rows = {row[0]: row[1:] for row in page.rows["ap"]}
    assert rows["AP"][-1] == "41.2" and rows["APl"][-1] == "–"
    # recall and precision of the two classes with scores of 0.3 or more: 1 of 4, 1 of 3; 3 of 4, 3 of 4
    assert (rows[EVIL][0], rows[EVIL][-2:]) == ("4", ["25.0", "33.3"])
    assert (rows[PLAIN][0], rows[PLAIN][-2:]) == ("4", ["75.0", "75.0"])
    assert rows["small"][1] == "8" and rows["large"][1:] == ["0", "–", "–"]
    assert "AR100" in rows
    assert "they are of other weights or other images" in page.sections["ap"]  # 41.2 was made up


def test_confusion_matrix(folder):
    page, _ = report(folder)
    rows = page.rows["confusion"]
    assert rows[0] == ["", EVIL, PLAIN, "missed"]
    assert rows[1:] == [[EVIL, "1", "1", "2"], [PLAIN, "0", "3", "1"], ["background", "2", "0", ""]]


def test_pictures(folder):
    page, _ = report(folder)
    images = [a for tag, a in page.tags if tag == "img"]
    assert all(a["src"].startswith("data:image/") and "correct" in a["alt"] for a in images)
    text = page.sections["detections"]
    sample, _, rest = text.partition("Most wrong detections")
    wrong, _, missed = rest.partition("Most missed objects")
    assert re.findall(r"im<i>(\d)", sample) == ["1", "2", "3", "4"]
    assert re.findall(r"im<i>(\d)", wrong) == ["3", "2"]  # two, one
    assert re.findall(r"im<i>(\d)", missed) == ["4", "2", "3"]  # two, one, one


def charts(page):
    """Figures by title."""
    found = [a for _, a in page.tags if a.get("class") == "plot"]
    return {a["aria-label"].partition(".")[0]: json.loads(a["data-figure"]) for a in found}


def test_curves(folder):
    page, _ = report(folder)
    found = charts(page)
    assert {
        "Total loss",
        "Average precision",
        "Learning rate",
        "Experts in use (exponential of the entropy of their loads)",
    } <= set(found)
    routers = found["Queries that pass the routers, per image"]["data"]
    assert {each["name"]: each["y"][-1] for each in routers} == {"mean: 15": 15, "layer 0: 20": 20}
    ap = found["Average precision"]["data"][0]
    assert (ap["name"], ap["x"], ap["y"]) == ("AP: 41.25", [100, 200], [20, 41.25])
    kinds = found["Losses by kind, summed over layers and groups"]["data"]
    assert [each["name"].partition(":")[0] for each in kinds] == ["classification", "box L1"]
    classes = found["Precision over recall of each class, IoU 0"]["data"]
    assert [each["name"].partition(":")[0] for each in classes] == [escape(EVIL, quote=False), "b &amp; c"]
    assert found["Detections by score"]["data"][0]["name"] == "correct"


def test_lvis(folder):
    """Detections of its evaluation have a file of another name, and COCO's figures of them are not those of LVIS."""
    annotations = folder.parent / "images" / "annotations.json"
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        image["neg_category_ids"] = []
    for category in content["categories"]:
        category["frequency"] = "r"
    annotations.write_text(json.dumps(content))
    results = folder / "inference" / "coco_instances_results.json"
    results.rename(results.with_name("lvis_instances_results.json"))
    page, _ = report(folder)
    assert "annotated as LVIS" in page.sections["ap"] and "other weights" not in page.sections["ap"]
    assert page.rows["confusion"][1] == [EVIL, "1", "1", "2"]


def test_threshold(folder):
    page, _ = report(folder, Options(use_model=False, score_threshold=0.1))
    assert page.rows["confusion"][1] == [EVIL, "2", "1", "1"]
    assert "score of 0.1 or more" in page.sections["detections"]


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "log.txt", "inference/coco_instances_results.json"])
def test_incomplete_run(folder, name):
    """Every page has all sections, and a sentence instead of what cannot be shown."""
    (folder / name).unlink()
    page, missing = report(folder)
    assert set(SECTIONS) <= set(page.ids)
    if name == "metrics.json":
        assert "There is no metrics.json" in page.sections["curves"]
        assert "these figures are of the detections of this report" in page.sections["ap"]
    if name == "config.yaml":
        assert "There is no config.yaml" in page.sections["run"] and "Total loss" in page.sections["curves"]
        assert "The test dataset is unknown" in page.sections["confusion"]
        assert f"tools/report.py {folder} --config-file FILE" in page.sections["confusion"]
    if name == "log.txt":
        assert "Machine and versions are not recorded" in page.sections["run"]
        assert "sum of the logged times" in page.sections["summary"]  # 200 iterations of 0.5 s
        assert "1.7 min" in page.sections["summary"]
        assert "Config filenot recorded" in page.sections["run"]
    if "inference" in name:
        for section in ("detections", "confusion", "precision-recall", "scores", "queries"):
            assert "The model was not run (--no-model)." in page.sections[section]
            assert f"python tools/report.py {folder}" in page.sections[section]
        assert [row for row in page.rows["ap"] if row == [PLAIN, "44.5"]]  # as logged
        assert any("Recall and the breakdown" in why for why in missing)


def test_without_checkpoint(folder):
    page, missing = report(folder, Options())
    assert missing == [f"There is no model_final.pth in {folder}."]
    (folder / "model_0000099.pth").touch()
    page, _ = report(folder, Options())
    assert "but model_0000099.pth." in page.sections["queries"]
    assert f"--weights {folder}/model_0000099.pth" in page.sections["queries"]


def test_images_that_are_gone(folder):
    for file in (folder.parent / "images").glob("*.png"):
        file.unlink()
    page, missing = report(folder)
    assert "The images cannot be drawn" in page.sections["detections"] and "im<i>1.png" in missing[0]
    assert page.rows["confusion"][1] == [EVIL, "1", "1", "2"]


def test_dataset_that_is_not_registered(folder):
    text = (folder / "config.yaml").read_text().replace("detrx_test_report", "detrx_test_other")
    (folder / "config.yaml").write_text(text)
    page, missing = report(folder)
    assert "'detrx_test_other' is not registered" in missing[-1]
    assert "The test dataset cannot be read" in page.sections["scores"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "hello\n{}\n", r"metrics\.json, line 1"),
        ("config.yaml", "model: [1", r"config\.yaml is damaged, it cannot be read as YAML"),
        ("config.yaml", "just text", r"config\.yaml is damaged: expected a mapping"),
        ("config.yaml", "", r"config\.yaml is damaged: expected a mapping"),
        ("inference/coco_instances_results.json", '[{"image_id": 1', r"coco_instances_results\.json: not valid JSON"),
        (
            "inference/coco_instances_results.json",
            '[{"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}]',
            r"coco_instances_results\.json: entry 0 has image_id 9",
        ),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        report(folder)


def test_no_run_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "log.txt").write_text(LOG)
    with pytest.raises(FileNotFoundError, match=r"neither config\.yaml nor metrics\.json"):
        read_run(tmp_path)


def test_a_folder_of_an_evaluation_alone(folder):
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    (folder / "eval_config.yaml").write_text(text.replace("detrx_test_report", "other"), encoding="utf-8")
    assert read_run(folder).config_text == text, "that of the training, if there is one"
    config.unlink()
    (folder / "metrics.json").unlink()
    run = read_run(folder)
    assert run.test_datasets == ["other"] and config_file_of(folder).name == "eval_config.yaml"


def test_log():
    log = parse_log(LOG)
    assert (log.config_file, log.overrides) == ("<b>new.py", ("optimizer.lr=0.1",))
    assert log.seconds == 60 + 86400 + 120 and log.begun == "11/21 14:26:50"
    assert dict(log.environment)["torch"] == "2.11.0 (CUDA 13.0, /somewhere)"


@pytest.mark.parametrize(
    "text", ["", "free text\nwithout any entry", "[11/21 14:26:50] x INFO: Namespace(", "\x00\xff"]
)
def test_other_logs_tell_nothing(text):
    log = parse_log(text)
    assert (log.config_file, log.overrides, log.environment, log.seconds) == (Log().config_file, (), (), None)


def test_evaluations_do_not_hide_the_training():
    start = "[11/22 09:00:00] detrx INFO: Command line arguments: Namespace(config_file='x.yaml', eval_only=True)"
    log = parse_log(f"{LOG}{start}\n")
    assert (log.config_file, log.eval_only) == ("<b>new.py", False)
    log = parse_log(start)
    assert (log.config_file, log.eval_only) == ("x.yaml", True)


def test_duration_of_a_run_that_was_killed():
    """Its log has the end of the first training only."""
    assert parse_log(LOG.rpartition("[11/21 14:30:52]")[0]).seconds is None


def test_date(folder):
    assert read_run(folder).date == "11/21 14:26:50 (month/day; no year was logged)"
    (folder / "events.out.tfevents.1795271226.host.1.0").touch()
    assert read_run(folder).date == "2026-11-21 14:27 UTC"
