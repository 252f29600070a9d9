import json
from pathlib import Path

import pytest
from PIL import Image

from detrx.cli import check_dataset as tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path):
    def _write(box, name="annotations.json"):
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": [
                {"id": k, "image_id": 1, "category_id": 1, "bbox": b, "area": 1, "iscrowd": 0}
                for k, b in enumerate([[1, 2, 30, 4], box], start=1)
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / name).write_text(json.dumps(content))
        return [f"--annotations={tmp_path / name}", f"--images={tmp_path}"]

    return _write


@pytest.mark.parametrize(
    ("box", "options", "status", "last"),
    [
        ([1, 1, 2, 2], [], None, "no errors, 0 warnings"),
        ([1, 1, 0, 2], [], None, "no errors, 1 warnings"),
        ([1, 1, 0, 2], ["--strict"], "error: the dataset has problems; errors: 0, warnings: 1", None),
        ([1, 1, 0], [], "error: the dataset has problems; errors: 1, warnings: 0", None),
    ],
)
def test_exit_status(write, capsys, box, options, status, last):
    if status is None:
        tool.main(write(box) + options)
    else:
        with pytest.raises(SystemExit) as exit:
            tool.main(write(box) + options)
        assert exit.value.code == status  # Python prints it, and exits with 1
    lines = capsys.readouterr().out.splitlines()
    if last:
        assert lines[-1] == last


def test_report(write, tmp_path, capsys):
    report = tmp_path / "reports" / "check.json"
    with pytest.raises(SystemExit):
        tool.main([*write([1, 1, 0]), f"--json={report}", "--no-images"])
    assert "annotation 2 of image a.png has bbox [1, 1, 0]" in capsys.readouterr().out
    (dataset,) = json.loads(report.read_text())["datasets"]
    assert (dataset["errors"], dataset["warnings"], dataset["statistics"]["boxes"]) == (1, 0, 1)
    assert dataset["findings"][0]["kind"] == "bad-box"


def test_config_with_files_of_ones_own(write, tmp_path, capsys):
    write([1, 1, 2, 2], "train.json")
    write([1, 1, 50, 2], "val.json")
    config = str(ROOT / "configs" / "deformable_detr" / "deformable_detr_digits.py")
    opts = [
        f"dataset.{split}_{key}={tmp_path}{file}"
        for split in ("train", "val")
        for key, file in (("json", f"/{split}.json"), ("images", ""))
    ]
    tool.main(["--config-file", config, *opts])
    out = capsys.readouterr().out
    assert "dataset      custom_train" in out and "dataset      custom_val" in out
    assert "[partly-outside]" in out and "[in-train-and-test]" in out
    assert "[class-count]" not in out


@pytest.mark.parametrize(
    "arguments", [[], ["--annotations=a.json"], ["--dataset=a", "a.b=3"], ["--dataset=a", "--workers=0"]]
)
def test_arguments_that_do_not_fit(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main(arguments)
    assert exit.value.code == 2


def test_unknown_dataset(capsys):
    with pytest.raises(SystemExit, match=r"error: dataset 'digits_trian' is not registered; did you mean"):
        tool.main(["--dataset", "digits_trian"])
