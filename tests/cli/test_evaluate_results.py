import json
import re

import pytest

from detrx.cli import evaluate_results as tool
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from tests.coco.cases import found, ground_truth

TRUTH = ground_truth(
    [
        (1, 3, [0, 0, 10, 10], {}),
        (1, 3, [100, 0, 10, 10], {}),
        (1, 8, [0, 90, 50, 50], {}),
        (1, 8, [0] * 4, {"iscrowd": 1}),
    ],
    categories={3: "cup", 8: "fork", 9: "never"},
)
RESULTS = found((1, 3, [0, 0, 10, 10], 0.9), (1, 8, [0, 90, 50, 40], 0.8))
CUP, FORK = 100 * 51 / 101, 70.0  # one of two; found up to IoU 0.8


@pytest.fixture
def files(tmp_path):
    annotations, results = tmp_path / "val.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(TRUTH))
    results.write_text(json.dumps(RESULTS))
    return annotations, results


def run(annotations, results, *arguments):
    tool.main(["--annotations", str(annotations), "--results", str(results), *map(str, arguments)])


def squeezed(text):
    return [line.replace(" ", "") for line in text.splitlines()]


@pytest.mark.parametrize("official", [[], ["--official"]])
def test_tables(files, capsys, official):
    run(*files, *official)
    printed = capsys.readouterr().out
    assert printed.startswith("COCO metrics: 1 images, 3 objects, 2 detections\n")
    lines = squeezed(printed)
    assert "|AP|AP50|AP75|APs|APm|APl|" in lines and "|60.248|75.248|75.248|50.495|70.000|nan|" in lines
    assert "|AR1|AR10|AR100|ARs|ARm|ARl|" in lines and "|60.000|60.000|60.000|50.000|70.000|nan|" in lines
    assert "cup" not in printed
    run(*files, "--per-class", *official)
    assert "|cup|50.495|fork|70.000|never|nan|" in squeezed(capsys.readouterr().out)


def test_json_has_all_figures(files, tmp_path, capsys):
    output = tmp_path / "new" / "figures.json"
    run(*files, "--json", output)
    assert f"figures: {output}" in capsys.readouterr().out
    assert "NaN" not in output.read_text()
    report = json.loads(output.read_text())
    assert [report[key] for key in ("metric", "images", "objects", "detections")] == ["COCO", 1, 3, 2]
    assert report["AP"]["AP"] == pytest.approx((CUP + FORK) / 2) and report["AP"]["APl"] is None
    cup, fork, never = report["per_class"]
    assert cup == pytest.approx(
        {"name": "cup", "category_id": 3, "objects": 2, "AP": CUP, "AP50": CUP, "AP75": CUP, "APs": CUP}
        | {"APm": None, "APl": None}
    )
    assert (fork["objects"], never["objects"], never["AP"]) == (1, 0, None)


def test_limit_of_detections(files, capsys):
    annotations, results = files
    wrong = [(1, 3, [50 + 2 * k, 0, 1, 1], 0.95) for k in range(20)]
    results.write_text(json.dumps(found(*wrong) + RESULTS))
    run(annotations, results, "--max-dets", 20)
    assert "|35.000|50.000|50.000|0.000|70.000|nan|" in squeezed(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        run(annotations, results, "--max-dets", 0)
    assert "--max-dets: must be 1 or more, got 0" in capsys.readouterr().err


def test_duplicates_can_be_left_out(files, tmp_path, capsys):
    """IoU of the duplicate cup: 0.8. Another class or another place is no duplicate; the order of scores decides."""
    annotations, results = files
    results.write_text(json.dumps(found((1, 3, [0, 0, 10, 8], 0.95), (1, 8, [0, 0, 10, 10], 0.3)) + RESULTS))
    counts = {}
    for nms in (None, 0.85, 0.75):
        run(annotations, results, "--json", tmp_path / "out.json", *([] if nms is None else ["--nms", nms]))
        counts[nms] = json.loads((tmp_path / "out.json").read_text())["detections"]
    assert counts == {None: 4, 0.85: 4, 0.75: 3}
    cup, _, _ = json.loads((tmp_path / "out.json").read_text())["per_class"]
    assert cup["AP75"] == pytest.approx(CUP) and cup["AP"] == pytest.approx(0.7 * CUP)  # the better box was left out
    with pytest.raises(SystemExit, match="non-maximum suppression must be in"):
        run(annotations, results, "--nms", 1.5)
    capsys.readouterr()


def test_registered_dataset(files, capsys, tmp_path):
    annotations, results = files
    register_coco_instances("saved_val", {}, str(annotations), str(tmp_path))
    try:
        tool.main(["--dataset", "saved_val", "--results", str(results)])
        assert "|60.248|" in "".join(squeezed(capsys.readouterr().out))
        annotations.unlink()
        with pytest.raises(SystemExit, match=r"annotation file .*val\.json of dataset 'saved_val' does not exist"):
            tool.main(["--dataset", "saved_val", "--results", str(results)])
    finally:
        DatasetCatalog.remove("saved_val")
        MetadataCatalog.remove("saved_val")
    with pytest.raises(SystemExit, match=r"error: dataset 'saved_val' is not registered; did you mean one of"):
        tool.main(["--dataset", "saved_val", "--results", str(results)])


def test_lvis(files, capsys, monkeypatch):
    pytest.importorskip("lvis")
    annotations, results = files
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    annotations.write_text(json.dumps(content))
    run(annotations, results, "--per-class")
    printed = capsys.readouterr().out
    assert printed.startswith("LVIS metrics: ")
    assert re.search(r"\|APr\|APc\|APf\|$", "\n".join(squeezed(printed)), re.MULTILINE)
    assert "|50.495|" in "".join(squeezed(printed))
    monkeypatch.setitem(__import__("sys").modules, "lvis", None)
    with pytest.raises(SystemExit, match=r"error: the LVIS metrics need the package lvis: pip install 'detrx\[lvis\]'"):
        run(annotations, results)


def test_mistakes_get_one_line(files, tmp_path):
    annotations, results = files
    with pytest.raises(SystemExit, match=r"error: results file .*none\.json does not exist"):
        run(annotations, tmp_path / "none.json")
    results.write_text(json.dumps([*RESULTS, {**RESULTS[0], "image_id": 5}]))
    with pytest.raises(
        SystemExit, match=r"error: results file .*results\.json: entry 2 has image_id 5, which is not in"
    ):
        run(annotations, results)
    annotations.write_text("[]")
    with pytest.raises(SystemExit, match=r"error: annotation file .*val\.json: expected an object"):
        run(annotations, results)
