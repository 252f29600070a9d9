import copy
import json
import logging
import math
import os
import socket
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import Boxes, Instances
from detrx.evaluation import LVISEvaluator, evaluate_file
from detrx.evaluation.lvis import import_lvis
from tests.coco.cases import found, ground_truth, random_case

pytest.importorskip("lvis")

CATEGORIES = {4: ("cup", "f"), 7: ("fork", "c"), 9: ("knife", "r"), 12: ("spoon", "r")}


def federated(content, frequencies, negative=None, not_exhaustive=None):
    """`negative`, `not_exhaustive`: image id -> ids of the categories that are not there, or not all annotated."""
    for image in content["images"]:
        image["neg_category_ids"] = (negative or {}).get(image["id"], [])
        image["not_exhaustive_category_ids"] = (not_exhaustive or {}).get(image["id"], [])
    for category, frequency in zip(content["categories"], frequencies, strict=True):
        category["frequency"] = frequency
    return content


SMALL, MEDIUM = [0, 0, 10, 10], [100, 0, 50, 50]
HAND = federated(
    ground_truth(
        [(1, 4, SMALL, {}), (1, 7, MEDIUM, {}), (2, 9, SMALL, {})],
        images=(1, 2),
        categories={i: name for i, (name, _) in CATEGORIES.items()},
    ),
    [frequency for _, frequency in CATEGORIES.values()],
    negative={2: [4]},
    not_exhaustive={1: [7]},
)
HAND_RESULTS = found(
    (1, 4, SMALL, 0.5),
    (2, 4, SMALL, 0.9),  # known not to be there: a false one
    (1, 7, [0, 90, 50, 50], 0.9),  # perhaps there, not annotated: does not count
    (1, 7, [100, 0, 50, 40], 0.8),  # IoU 0.8
    (1, 9, SMALL, 0.9),  # not looked for in this image: does not count
    (1, 12, SMALL, 0.9),
)


@pytest.fixture
def register(tmp_path):
    """Registers annotations as a dataset of this name; returns the name."""

    def _register(content, name="lvis_hand", ids=None):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        MetadataCatalog.get(name).set(
            json_file=str(file), **({"thing_dataset_id_to_contiguous_id": ids} if ids else {})
        )
        names.add(name)
        return name

    names = set()
    yield _register
    for name in names:
        MetadataCatalog.remove(name)


def outputs(results, ids):
    """What a model says: image id -> instances, for detections in COCO's format."""
    by_image = {}
    for image in sorted({result["image_id"] for result in results}):
        rows = [result for result in results if result["image_id"] == image]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        by_image[image] = Instances(
            (200, 300),
            pred_boxes=Boxes(boxes),
            scores=torch.tensor([row["score"] for row in rows], dtype=torch.float64),
            pred_classes=torch.tensor([ids[row["category_id"]] for row in rows]),
        )
    return by_image


def evaluate(name, by_image, **options):
    evaluator = LVISEvaluator(name, **options)
    evaluator.reset()
    for image, instances in by_image.items():
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    return evaluator.evaluate()


IDS = {4: 0, 7: 1, 9: 2, 12: 3}
# cup: precision 1/2 at all recalls; fork: found up to IoU 0.8; knife: not found; spoon: no ground truth
EXPECTED = {"AP": 40.0, "AP50": 50.0, "AP75": 50.0, "APs": 25.0, "APm": 70.0, "APl": math.nan}
EXPECTED |= {"APr": 0.0, "APc": 70.0, "APf": 50.0}


def test_by_hand(register, tmp_path):
    result = evaluate(register(HAND, ids=IDS), outputs(HAND_RESULTS, IDS), output_dir=str(tmp_path / "out"))
    assert list(result) == ["bbox"] and list(result["bbox"]) == list(EXPECTED)
    assert result["bbox"] == pytest.approx(EXPECTED, nan_ok=True)
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    key = json.dumps
    assert sorted(written, key=key) == sorted(HAND_RESULTS, key=key)


def test_without_a_map_of_ids_they_begin_with_1(register):
    by_image = outputs(HAND_RESULTS, {i: i - 1 for i in IDS})
    assert evaluate(register(HAND), by_image)["bbox"] == pytest.approx(EXPECTED, nan_ok=True)


@pytest.mark.parametrize("limit", [300, 20])
def test_figures_are_those_of_the_lvis_package(limit, monkeypatch):
    from lvis import LVIS, LVISEval, LVISResults

    from detrx.evaluation.lvis_scores import score_lvis

    content, results = random_case(1)
    rng = np.random.RandomState(5)
    images = [image["id"] for image in content["images"]]
    ids = [category["id"] for category in content["categories"]]
    negative, partly = ({i: rng.choice(ids, 2, replace=False).tolist() for i in images} for _ in range(2))
    content = federated(content, "rfcfcr", negative, partly)
    before = copy.deepcopy((content, results))
    ours = score_lvis(content, results, limit)
    assert (content, results) == before

    monkeypatch.setattr(np, "float", float, raising=False)  # which the package needs
    api = LVIS.__new__(LVIS)
    api.logger, api.dataset = logging.getLogger("lvis.lvis"), content
    api._create_index()
    reference = LVISEval(api, LVISResults(api, copy.deepcopy(results), limit), "bbox")
    reference.params.max_dets = limit
    reference.run()
    assert list(ours) == list(reference.get_results()) and f"AR@{limit}" in ours
    theirs = {name: 100 * value if value > -1 else math.nan for name, value in reference.get_results().items()}
    assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    assert 5 < ours["AP"] < 60 and all(math.isfinite(ours[name]) for name in ("APr", "APc", "APf", "APs", "APm"))


def test_the_limit_is_per_image(register):
    name = register(HAND, ids=IDS)
    assert evaluate(name, outputs(HAND_RESULTS, IDS), max_dets_per_image=1)["bbox"]["AP"] == 0
    best = [result for result in HAND_RESULTS if result["score"] != 0.9 or result["image_id"] == 2]
    assert evaluate(name, outputs(best, IDS), max_dets_per_image=1)["bbox"]["APc"] == pytest.approx(70)


def test_nothing_detected_nothing_processed_nothing_annotated(register, tmp_path):
    name = register(HAND, ids=IDS)
    empty = Instances(
        (200, 300), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0)
    )
    result = evaluate(name, {1: empty})["bbox"]
    assert list(result) == list(EXPECTED) and all(map(math.isnan, result.values()))
    assert evaluate(name, {}) == {}
    unlabelled = register({**HAND, "annotations": []}, "lvis_unlabelled", IDS)
    assert evaluate(unlabelled, outputs(HAND_RESULTS, IDS), output_dir=str(tmp_path)) == {}
    assert len(json.loads((tmp_path / "lvis_instances_results.json").read_text())) == 6


def test_average_precision_after_suppression(register):
    """Of HAND's detections nothing is a duplicate; a second, better box of the cup is one."""
    name = register(HAND, ids=IDS)
    better = found((1, 4, [0, 0, 10, 8], 0.95))
    assert evaluate(name, outputs(HAND_RESULTS, IDS), nms=0.7)["bbox"] == pytest.approx(
        {**EXPECTED, "AP_NMS": EXPECTED["AP"]}, nan_ok=True
    )
    by_image = outputs([*HAND_RESULTS, *better], IDS)
    result = evaluate(name, by_image, nms=0.7)["bbox"]
    kept = outputs([each for each in HAND_RESULTS if (each["image_id"], each["score"]) != (1, 0.5)] + better, IDS)
    assert result.pop("AP_NMS") == pytest.approx(evaluate(name, kept)["bbox"]["AP"])
    assert result == pytest.approx(evaluate(name, by_image)["bbox"], nan_ok=True)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got -1"):
        LVISEvaluator(name, nms=-1)


def test_log(register, caplog):
    with caplog.at_level(logging.INFO):
        evaluate(register(HAND, ids=IDS), outputs(HAND_RESULTS, IDS))
    lines = [line.replace(" ", "") for line in caplog.text.splitlines()]
    assert "|AP|AP50|AP75|APs|APm|APl|APr|APc|APf|" in lines
    assert "|40.000|50.000|50.000|25.000|70.000|nan|0.000|70.000|50.000|" in lines
    assert "|AR@300|ARs@300|ARm@300|ARl@300|" in lines
    assert not any(record.name.startswith("lvis") for record in caplog.records)


@pytest.mark.parametrize("new_id", [lambda k: k - 1, lambda k: 10**20 + k, "id {:03}".format])
def test_ids_of_any_kind(register, tmp_path, new_id):
    content, results = copy.deepcopy((HAND, HAND_RESULTS))
    for section in ("images", "categories", "annotations"):
        for entry in content[section]:
            entry["id"] = new_id(entry["id"])
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [new_id(i) for i in image[key]] + ["unknown"]
    for entry in [*content["annotations"], *results]:
        entry.update(image_id=new_id(entry["image_id"]), category_id=new_id(entry["category_id"]))
    ids = {new_id(category): index for category, index in IDS.items()}
    result = evaluate(register(content, "lvis_ids", ids), outputs(results, ids), output_dir=str(tmp_path))
    assert result["bbox"] == pytest.approx(EXPECTED, nan_ok=True)
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert {(each["image_id"], each["category_id"]) for each in written} == {
        (each["image_id"], each["category_id"]) for each in results
    }
    report = evaluate_file(tmp_path / "lvis_instances_results.json", tmp_path / "lvis_ids.json")
    assert report["metric"] == "LVIS" and report["AP"] == pytest.approx(EXPECTED, nan_ok=True)
    assert "AR@300" in report["AR"]


def test_limits_that_are_none(register):
    for limit in (0, -1, 1.5):
        with pytest.raises(ValueError, match="max_dets_per_image must be a positive whole number"):
            LVISEvaluator(register(HAND), max_dets_per_image=limit)


def test_wrong_use(register, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="segm"):
        LVISEvaluator(register(HAND), tasks=("bbox", "segm"))
    MetadataCatalog.get("lvis_no_file").set(evaluator_type="lvis")
    with pytest.raises(ValueError, match="'lvis_no_file' has no metadata 'json_file'"):
        LVISEvaluator("lvis_no_file")
    MetadataCatalog.remove("lvis_no_file")
    for section, key in (("images", "neg_category_ids"), ("categories", "frequency")):
        content = copy.deepcopy(HAND)
        del content[section][1][key]
        with pytest.raises(ValueError, match=rf"lvis_{section}\.json, {section}\[1\]: expected '{key}'"):
            LVISEvaluator(register(content, f"lvis_{section}"))
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(ImportError, match=r"pip install 'detrx\[lvis\]'"):
        LVISEvaluator(register(HAND))


def test_the_log_of_the_process_is_left_alone(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lvis"]:
        monkeypatch.delitem(sys.modules, name)  # so that it is imported anew
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    import_lvis()
    assert "lvis" in sys.modules and root.handlers == []


def _two_ranks(rank, port, file):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    MetadataCatalog.get("lvis_ranks").set(json_file=f"{file}.json", thing_dataset_id_to_contiguous_id=IDS)
    mine = {image: found for image, found in outputs(HAND_RESULTS, IDS).items() if image == rank + 1}
    with open(f"{file}.{rank}", "w", encoding="utf-8") as f:
        json.dump(evaluate("lvis_ranks", mine), f)
    dist.destroy_process_group()
    os._exit(0)  # without the interpreter's end, in which threads of gloo that are left may abort the process


def test_two_processes(tmp_path):
    (tmp_path / "ranks.json").write_text(json.dumps(HAND))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_two_ranks, (port, str(tmp_path / "ranks")), nprocs=2)
    first, second = (json.loads((tmp_path / f"ranks.{rank}").read_text()) for rank in range(2))
    assert first["bbox"] == pytest.approx(EXPECTED, nan_ok=True) and second == {}
