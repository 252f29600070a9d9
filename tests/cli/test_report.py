"""The tool that writes the report of a run: detections of a model, what queries do, and the command line."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from detrx import model_zoo
from detrx.analysis.report import detections
from detrx.cli import report as tool
from detrx.d2.config import LazyConfig, instantiate
from detrx.engine.trained import load_model
from tests.analysis.report_runs import EVIL, PLAIN, SECTIONS, Page, small_dataset, write_run
from tests.modeling.small import SMALL_BACKBONE, SMALL_CHANNELS

FAKE = str(Path(__file__).with_name("fake_detector_config.py"))
RESULTS = Path("inference", "coco_instances_results.json")


@pytest.fixture
def dataset(tmp_path):
    """Images with a white rectangle, which the fake detector finds and calls by the second class."""
    with small_dataset(tmp_path / "images") as name:
        yield name


@pytest.fixture
def folder(tmp_path, dataset):
    return write_run(tmp_path / "run", dataset)


@pytest.fixture
def fake(folder, dataset):
    """Arguments that have the fake detector run instead of the one of the folder."""
    (folder / RESULTS).unlink()
    torch.save({"model": {"score": torch.tensor(0.75)}}, folder / "model_final.pth")
    return [str(folder), "--config-file", FAKE, f"dataloader.test.dataset.names={dataset}"]


def report(*arguments, file):
    tool.main([str(argument) for argument in arguments])
    return Page(file.read_text())


def test_only_what_is_on_disk(folder, capsys):
    page = report(folder, "--no-model", file=folder / "report.html")
    assert set(SECTIONS) <= set(page.ids)
    printed = capsys.readouterr().out
    assert "missing from the report: The model was not run (--no-model)." in printed
    assert f"report: {folder / 'report.html'}" in printed


def test_detections_of_the_model(fake, folder, tmp_path):
    """Without a file of results; the model has no queries."""
    output = tmp_path / "new" / "page.html"
    page = report(*fake, "--output", output, file=output)
    assert page.rows["confusion"][1][1:] == ["0", "4", "0"]  # all rectangles, taken for the other class
    assert page.rows["confusion"][2][1:] == ["0", "0", "4"]
    assert "of model_final.pth in 4 images" in page.sections["detections"]
    assert "The model is not a DetectionTransformer" in page.sections["queries"]
    assert not (folder / "report.html").exists()


def test_number_of_images_threshold_and_weights(fake, folder):
    torch.save({"model": {"score": torch.tensor(0.5)}}, folder / "other.pth")
    options = ["--num", 2, "--score-threshold", 0.05, "--weights", folder / "other.pth", "--device", "cpu"]
    page = report(*fake, *options, file=folder / "report.html")
    assert "of other.pth in 2 images" in page.sections["detections"]
    # The fake detector is surer of the wrong class, but its other detection is of the right one.
    assert page.rows["confusion"][1][1:] == ["0", "2", "0"]
    assert [row[-2:] for row in page.rows["ap"] if row[0] == EVIL] == [["100.0", "100.0"]]


def test_other_results(folder, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"image_id": 1, "category_id": 3, "bbox": [4, 8, 20, 20], "score": 0.9}]))
    page = report(folder, "--no-model", "--results", file, file=folder / "report.html")
    assert page.rows["confusion"][1][1:] == ["1", "0", "3"] and "mine.json" in page.sections["detections"]


def test_trained_folder(dataset, folder):
    """A checkpoint with the config that the training has saved: also queries and routers are in the report."""
    cfg = model_zoo.get_config("qr_detr/qr_deformable_detr_digits.py")
    cfg.dataloader.test.dataset.names = dataset
    cfg.model.backbone.model_args.update(SMALL_BACKBONE)
    cfg.model.backbone.pretrained = True  # there is no need to fetch weights that a checkpoint replaces
    cfg.model.neck.in_channels = [SMALL_CHANNELS[feature] for feature in cfg.model.neck.in_features]
    cfg.model.decoder.heads.num_classes = 2
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    assert "_target_" in yaml.safe_load((folder / "config.yaml").read_text())["model"]
    cfg.model.backbone.pretrained = False
    torch.save({"model": instantiate(cfg.model).state_dict()}, folder / "model_final.pth")
    page = report(folder, "--num", 3, "--score-threshold", 0.0, file=folder / "report.html")
    queries = page.sections["queries"]
    assert "over 3 images" in queries and "Gini coefficient" in queries and "QueryRouting" in page.sections["run"]
    count = cfg.model.query_source.num_queries
    titles = [a["aria-label"] for _, a in page.tags if a.get("class") == "plot"]
    assert any(title == f"Mean box of each query. Scatter plot of {count} points." for title in titles)
    rows = page.rows["queries"][1:]
    assert [row[0] for row in rows] == ["0", "1", "2"] and all(0 <= float(row[2]) <= count for row in rows)
    assert "of the evaluation" in page.sections["detections"]  # those of the file


def test_images_that_cannot_be_read(fake, folder, tmp_path, capsys):
    """Neither their objects nor detections in them count, and the report says so."""
    (tmp_path / "images" / "im<i>2.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: image .*im<i>2\.png cannot be read: the file is empty$"):
        tool.main(fake)
    page = Page((folder / "report.html").read_text())
    assert page.rows["confusion"][1][1:] == ["0", "3", "0"]
    text = page.sections["detections"]
    assert "of model_final.pth in 3 images" in text and "im<i>1.png" in text
    assert "Images that cannot be read are left out: 1. The first: image" in text
    assert "left out: image" in capsys.readouterr().err


def test_images_of_the_examples_that_cannot_be_read(folder, tmp_path):
    (tmp_path / "images" / "im<i>3.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: image .*im<i>3\.png cannot be read: the file is empty$"):
        tool.main([str(folder), "--no-model"])
    page = Page((folder / "report.html").read_text())
    assert "im<i>2.png: " in page.sections["detections"] and "im<i>3.png: " not in page.sections["detections"]
    assert page.rows["confusion"][1][1:] == ["1", "1", "2"]  # figures of the evaluation, which could read it


def test_classes_that_the_dataset_does_not_have(fake, folder, monkeypatch):
    """The detector's class 1 is taken for class 6."""

    class More(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            outputs = self.model(inputs)
            for output in outputs:
                output["instances"].pred_classes *= 6
            return outputs

    monkeypatch.setattr(detections, "load_model", lambda *args: More(load_model(*args)))
    page = report(*fake, file=folder / "report.html")
    names = [row[0] for row in page.rows["confusion"]]
    assert names[1:] == [EVIL, PLAIN, "2", "3", "4", "5", "6", "background"]
    assert page.rows["confusion"][1][1:] == ["0", "0", "0", "0", "0", "0", "4", "0"]
    assert "0 correct, 1 wrong, 2 missed" in page.sections["detections"]


@pytest.mark.parametrize("stored", [(60, 40), (40, 60)])
def test_turned_images_are_drawn_in_the_frame_of_their_annotations(folder, tmp_path, stored):
    """Annotated as 60 x 40: as it is stored, or as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", stored).save(tmp_path / "images" / "im<i>1.png", exif=exif)
    page = report(folder, "--no-model", file=folder / "report.html")
    sizes = {(a["width"], a["height"]) for tag, a in page.tags if tag == "img"}
    assert sizes == {("600", "400")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; expected the output folder of a training"),
        (["run", "--results", "none.json"], r"results file none\.json does not exist"),
        (["run", "--config-file", "none.py"], r"config file none\.py does not exist"),
        (["run", "--weights", "none.pth"], r"none\.pth does not exist"),
    ],
)
def test_wrong_arguments_end_with_one_clear_line(arguments, message, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        tool.main(arguments)
    assert not (folder / "report.html").exists()


def test_wrong_numbers(folder, capsys):
    for arguments, message in ((["--num", "0"], "--num: must be 1"), (["--score-threshold", "2"], "between 0 and 1")):
        with pytest.raises(SystemExit):
            tool.main([str(folder), *arguments])
        assert message in capsys.readouterr().err


def test_checkpoint_of_another_model(folder, dataset):
    """What was not asked for does not spoil the rest."""
    torch.save({"model": {"weight": torch.zeros(3)}}, folder / "model_final.pth")
    arguments = [folder, "--config-file", FAKE, f"dataloader.test.dataset.names={dataset}"]
    page = report(*arguments, file=folder / "report.html")
    assert "model_final.pth cannot be run: " in page.sections["queries"]
    assert page.rows["confusion"][1][1:] == ["1", "1", "2"]
    with pytest.raises(SystemExit, match=r"error: .*model_final\.pth"):
        tool.main([*map(str, arguments), "--weights", str(folder / "model_final.pth")])
