"""The COCO evaluator: figures that Detectron2's gives, whichever provider is active, and what that one cannot do."""

import json
import logging
import math
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detrx.d2 import USE_DETECTRON2
from detrx.d2.data import DatasetCatalog, InferenceSampler, MetadataCatalog, register_coco_instances
from detrx.d2.structures import Boxes, BoxMode, Instances
from detrx.data import get_detection_dataset_dicts
from detrx.errors import UserError
from detrx.evaluation import COCOEvaluator, evaluate_file
from tests.coco.registered import coco, registering


@pytest.fixture
def register(tmp_path):
    with registering(tmp_path) as add:
        yield add


def detections(*rows, size=(100, 200)):
    """Instances of rows (x, y, w, h, class, score)."""
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    boxes = BoxMode.convert(rows[:, :4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    return Instances(size, pred_boxes=Boxes(boxes), scores=rows[:, 5], pred_classes=rows[:, 4].long())


def evaluate(name, by_image, img_ids=None, **options):
    get_detection_dataset_dicts(name, filter_empty=False)  # fills the metadata
    evaluator = COCOEvaluator(name, **options)
    evaluator.reset()
    for image_id, instances in by_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate(img_ids)


HAND = coco(
    images=[1, 2],
    annotations=[
        (1, 3, [10, 10, 20, 20], {}),  # small, found exactly
        (1, 3, [100, 10, 20, 20], {}),  # small, not found
        (1, 8, [10, 10, 50, 50], {}),  # medium, found with an IoU of .8
        (2, 8, [0, 0, 100, 100], {"iscrowd": 1}),  # detections inside are ignored
    ],
    categories={3: "cup", 8: "fork", 9: "never"},
)
HAND_DETECTIONS = {
    1: detections([10, 10, 20, 20, 0, 0.9], [150, 60, 20, 20, 0, 0.8], [10, 10, 50, 40, 1, 0.7]),
    2: detections([10, 10, 20, 20, 1, 0.95]),
}


def test_average_precision_by_hand(register, tmp_path):
    result = evaluate(register("coco_hand", HAND), HAND_DETECTIONS, output_dir=str(tmp_path / "out"))
    assert list(result) == ["bbox"]
    # cup: recall .5 at precision 1, that is 51 of the 101 recall points, at every threshold
    cup = 100 * 51 / 101
    # fork: found at the thresholds .5 to .8, 7 of 10
    fork = 70.0
    expected = {
        "AP": (cup + fork) / 2,
        "AP50": (cup + 100) / 2,
        "AP75": (cup + 100) / 2,
        "APs": cup,
        "APm": fork,
        "APl": math.nan,
        "AP-cup": cup,
        "AP-fork": fork,
        "AP-never": math.nan,
    }
    assert list(result["bbox"]) == list(expected)
    assert result["bbox"] == pytest.approx(expected, nan_ok=True, abs=1e-9)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(written) == 4
    assert written[2] == {"image_id": 1, "category_id": 8, "bbox": [10, 10, 50, 40], "score": 0.7}


def random_case():
    """Ground truth and noisy detections of 12 images; legacy generator, whose numbers never change."""
    rng = np.random.RandomState(0)
    annotations, found = [], {}
    for image_id in range(1, 13):
        rows = []
        for _ in range(rng.randint(0, 7)):
            size = np.exp(rng.uniform(np.log(8), np.log(150), 2)).round(2)
            box = [*rng.uniform(0, 80, 2).round(2).tolist(), *size.tolist()]
            category = int(rng.randint(0, 4))
            crowd = int(rng.rand() < 0.1)
            annotations.append((image_id, [2, 3, 5, 7][category], box, {"iscrowd": crowd}))
            for _ in range(rng.randint(0, 4)):
                noisy = np.asarray(box) + rng.normal(0, 0.06, 4) * np.tile(size, 2)
                label = category if rng.rand() < 0.85 else int(rng.randint(0, 4))
                rows.append([*noisy.round(2).tolist(), label, round(rng.rand(), 4)])
        for _ in range(rng.randint(0, 4)):
            rows.append([*rng.uniform(5, 90, 4).round(2).tolist(), int(rng.randint(0, 4)), round(rng.rand(), 4)])
        found[image_id] = detections(*rows)
    return coco(range(1, 13), annotations, {2: "a", 3: "b", 5: "c", 7: "d"}), found


# What Detectron2's COCOEvaluator says about the random case.
RECORDED = {
    "AP": 26.166746,
    "AP50": 39.033966,
    "AP75": 31.735134,
    "APs": 29.180018,
    "APm": 31.320882,
    "APl": 0.0,
    "AP-a": 41.301767,
    "AP-b": 29.157041,
    "AP-c": 21.815182,
    "AP-d": 12.392993,
}


@pytest.mark.parametrize("options", [{}, {"use_fast_impl": False}, {"tasks": ("bbox",), "distributed": False}])
def test_average_precision_of_random_boxes(register, options):
    content, found = random_case()
    result = evaluate(register("coco_random", content), found, **options)
    assert result["bbox"] == pytest.approx(RECORDED, abs=2e-6)


def test_missing_areas_and_crowd_flags_have_defaults(register):
    content = coco([1], [(1, 1, [0, 0, 10, 10], {})], {1: "only"})
    for key in ("area", "iscrowd"):
        content["annotations"][0].pop(key)
    result = evaluate(register("coco_bare", content), {1: detections([0, 0, 10, 10, 0, 0.5])})["bbox"]
    assert result["APs"] == pytest.approx(100) and math.isnan(result["APm"])


def test_log_has_tables_of_precision_recall_and_classes(register, caplog):
    with caplog.at_level(logging.INFO):
        evaluate(register("coco_hand", HAND), HAND_DETECTIONS)
    lines = [line.replace(" ", "") for line in caplog.text.splitlines()]
    assert "|AP|AP50|AP75|APs|APm|APl|" in lines and "|60.248|75.248|75.248|50.495|70.000|nan|" in lines
    assert "|AR1|AR10|AR100|ARs|ARm|ARl|" in lines and "|60.000|60.000|60.000|50.000|70.000|nan|" in lines
    assert "|cup|50.495|fork|70.000|never|nan|" in lines


def test_results_file_is_replaced_at_once(register, tmp_path, monkeypatch):
    name = register("coco_hand", HAND)
    file = tmp_path / "coco_instances_results.json"
    evaluate(name, {1: detections([0, 0, 5, 5, 0, 0.5])}, output_dir=str(tmp_path))
    before = file.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(name, HAND_DETECTIONS, output_dir=str(tmp_path))
    assert file.read_text() == before
    monkeypatch.undo()
    evaluate(name, HAND_DETECTIONS, output_dir=str(tmp_path))
    assert len(json.loads(file.read_text())) == 4 and [f.name for f in tmp_path.glob("*_results*")] == [file.name]


def test_limit_of_detections_per_image(register):
    register("coco_many", coco([1], [(1, 1, [0, 0, 50, 50], {})], {1: "only"}))
    wrong = [[100, 50, 20, 20, 0, 0.5 + k / 1000] for k in range(149)]
    found = {1: detections(*wrong, [0, 0, 50, 50, 0, 0.1])}  # the hit has the lowest score of 150
    assert evaluate("coco_many", found)["bbox"]["AP"] == 0
    result = evaluate("coco_many", found, max_dets_per_image=200)["bbox"]
    assert [result[k] for k in ("AP", "AP50", "AP75")] == pytest.approx([100 / 150] * 3)
    assert result["APm"] == pytest.approx(100)  # the others are small and do not count here


def test_average_precision_after_suppression(register, tmp_path):
    """An exact box with a better, less exact duplicate, which hides it from the thresholds above its IoU of .8."""
    found = {1: detections([10, 10, 50, 50, 1, 0.6], [10, 10, 50, 40, 1, 0.7], [100, 10, 20, 20, 0, 0.9])}
    register("coco_hand", HAND)
    without = evaluate("coco_hand", found)["bbox"]
    result = evaluate("coco_hand", found, nms=0.7, output_dir=str(tmp_path))["bbox"]
    cup, fork = 100 * 51 / 101, 70.0
    assert result.pop("AP_NMS") == pytest.approx((cup + fork) / 2)
    assert result == pytest.approx(without, nan_ok=True) and result["AP-fork"] == pytest.approx(70 + 30 * 0.5)
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 3
    assert evaluate("coco_hand", found, nms=0.9)["bbox"]["AP_NMS"] == pytest.approx(without["AP"])
    assert math.isnan(evaluate("coco_hand", {1: detections()}, nms=0.7)["bbox"]["AP_NMS"])
    for wrong in (1.5, "0.7", True):
        with pytest.raises(UserError, match=r"non-maximum suppression must be in \[0, 1\], got"):
            COCOEvaluator("coco_hand", nms=wrong)


def test_average_precision_after_suppression_is_that_of_the_saved_detections(register, tmp_path):
    content, found = random_case()
    name = register("coco_random", content)
    result = evaluate(name, found, list(range(1, 13)), nms=0.6, output_dir=str(tmp_path))["bbox"]
    file = MetadataCatalog.get(name).json_file
    saved = evaluate_file(tmp_path / "coco_instances_results.json", file, nms=0.6)["AP"]["AP"]
    assert result.pop("AP_NMS") == pytest.approx(saved) and saved != pytest.approx(RECORDED["AP"], abs=0.1)
    assert result == pytest.approx(RECORDED, abs=2e-6)
    some = evaluate(name, found, [1, 2, 3], nms=1.0)["bbox"]
    assert some["AP_NMS"] == pytest.approx(some["AP"]) != pytest.approx(RECORDED["AP"], abs=0.1)


def test_images_can_be_chosen(register):
    register("coco_hand", HAND)
    assert math.isnan(evaluate("coco_hand", HAND_DETECTIONS, img_ids=[2])["bbox"]["AP"])
    assert evaluate("coco_hand", HAND_DETECTIONS, img_ids=[1])["bbox"]["AP-fork"] == pytest.approx(70)


def test_nothing_detected_or_nothing_processed(register, tmp_path):
    register("coco_hand", HAND)
    result = evaluate("coco_hand", {1: detections(), 2: detections()}, output_dir=str(tmp_path))
    assert set(result["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert all(math.isnan(v) for v in result["bbox"].values())
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []
    assert evaluate("coco_hand", {}) == {}


def test_one_class_has_no_table_of_classes(register):
    content = coco([1], [(1, 1, [0, 0, 50, 50], {})], {1: "only"})
    result = evaluate(register("coco_one", content), {1: detections([0, 0, 50, 50, 0, 0.5])})
    assert set(result["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"} and result["bbox"]["AP"] == pytest.approx(
        100
    )


def test_dataset_without_annotations(register, tmp_path):
    content = coco([1], [], {1: "a", 2: "b"})
    del content["annotations"]
    result = evaluate(
        register("coco_unlabelled", content), {1: detections([0, 0, 5, 5, 1, 0.5])}, output_dir=str(tmp_path)
    )
    assert result == {}
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())[0]["category_id"] == 2


def test_evaluator_errors(register):
    with pytest.raises(UserError, match="a prediction for image 1 has class 7, but the dataset has 3 classes"):
        evaluate(register("coco_hand", HAND), {1: detections([0, 0, 5, 5, 7, 0.5])})
    MetadataCatalog.get("coco_no_file")
    with pytest.raises(ValueError):
        COCOEvaluator("coco_no_file")
    MetadataCatalog.remove("coco_no_file")


def test_other_tasks_are_refused(register):
    with pytest.raises(ValueError, match="segm"):
        COCOEvaluator(register("coco_hand", HAND), tasks=("bbox", "segm"))


# --- ids of any kind ---

NEW_IDS = {
    "from 0": lambda k: k - 1,
    "negative": lambda k: -k,
    "beyond 53 bits": lambda k: 2**53 + 1 + k,
    "beyond 64 bits": lambda k: 10**20 + k,
    "floats": float,
    "text": "img-{}".format,
    "half of them text": lambda k: str(k) if k % 2 else k,
}
MIXED = NEW_IDS["half of them text"]


def renumbered(content, new_id):
    content = json.loads(json.dumps(content))
    for section in ("images", "categories", "annotations"):
        for entry in content[section]:
            entry["id"] = new_id(entry["id"])
    for entry in content["annotations"]:
        entry.update(image_id=new_id(entry["image_id"]), category_id=new_id(entry["category_id"]))
    return content


def in_new_ids(name, found, new_id):
    """Detections of the random case in the images and classes of a dataset that is the same with other ids."""
    get_detection_dataset_dicts(name, filter_empty=False)
    index_of = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    new_index = torch.tensor([index_of[new_id(i)] for i in (2, 3, 5, 7)])
    return {
        new_id(image_id): Instances((100, 200), **{**each.get_fields(), "pred_classes": new_index[each.pred_classes]})
        for image_id, each in found.items()
    }


@pytest.mark.parametrize("use_fast_impl", [True, False])
@pytest.mark.parametrize("kind", NEW_IDS)
def test_ids_of_any_kind(register, tmp_path, kind, use_fast_impl):
    new_id = NEW_IDS[kind]
    content, found = random_case()
    name = register("coco_ids", renumbered(content, new_id))
    outputs = in_new_ids(name, found, new_id)
    figures = evaluate(name, outputs, output_dir=str(tmp_path), use_fast_impl=use_fast_impl)["bbox"]
    assert figures == pytest.approx(RECORDED, abs=2e-6)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    expected = [(new_id(i), new_id([2, 3, 5, 7][c])) for i, each in found.items() for c in each.pred_classes.tolist()]
    pairs = [(entry["image_id"], entry["category_id"]) for entry in written]
    assert pairs == expected and list(map(repr, sum(pairs, ()))) == list(map(repr, sum(expected, ())))
    again = evaluate_file(tmp_path / "coco_instances_results.json", tmp_path / "coco_ids.json")
    assert again["AP"] == {key: pytest.approx(figures[key], nan_ok=True) for key in again["AP"]}


def test_numbers_of_numpy_as_image_ids(tmp_path):
    """As datasets of one's own may have them."""
    box = {"bbox": [1, 1, 11, 21], "bbox_mode": BoxMode.XYXY_ABS, "category_id": np.int64(0)}
    record = {"image_id": np.int64(7), "annotations": [box]}
    DatasetCatalog.register("coco_numpy", lambda: [record])
    try:
        evaluator = COCOEvaluator("coco_numpy", output_dir=str(tmp_path))
        evaluator.reset()
        evaluator.process([record], [{"instances": detections([1, 1, 10, 20, 0, 0.5])}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
        assert '"image_id": 7,' in (tmp_path / "coco_instances_results.json").read_text()
    finally:
        DatasetCatalog.remove("coco_numpy")
        MetadataCatalog.remove("coco_numpy")


def test_dataset_dicts_are_the_ground_truth_without_a_file():
    box = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    records = [
        {"image_id": "a", "annotations": [box, box | {"bbox": [50, 50, 60, 60], "bbox_mode": BoxMode.XYXY_ABS}]},
        {"image_id": ("b", 1), "annotations": [box | {"category_id": 0, "iscrowd": 1}]},
    ]
    DatasetCatalog.register("coco_dicts", lambda: records)
    MetadataCatalog.get("coco_dicts").set(thing_classes=["x", "y"], thing_dataset_id_to_contiguous_id={"X": 0, "Y": 1})
    try:
        evaluator = COCOEvaluator("coco_dicts")
        evaluator.reset()
        inputs = [{"image_id": "a"}, {"image_id": ("b", 1)}]
        outputs = [detections([50, 50, 10, 10, 1, 0.9]), detections([12, 12, 5, 5, 0, 0.9])]
        evaluator.process(inputs, [{"instances": each} for each in outputs])
        half = 100 * 51 / 101
        nan = math.nan
        expected = {
            "AP": half,
            "AP50": half,
            "AP75": half,
            "APs": half,
            "APm": nan,
            "APl": nan,
            "AP-x": nan,
            "AP-y": half,
        }
        assert evaluator.evaluate()["bbox"] == pytest.approx(expected, nan_ok=True)
    finally:
        DatasetCatalog.remove("coco_dicts")
        MetadataCatalog.remove("coco_dicts")


def test_an_image_that_the_file_does_not_have(register):
    with pytest.raises(UserError, match="detection 0 has image_id '1', which the annotations do not have"):
        evaluate(register("coco_hand", HAND), {"1": detections([10, 10, 20, 20, 0, 0.9])})


# --- limits, names of classes, other tasks ---


@pytest.mark.parametrize(("limit", "rows"), [(1, "|AR1|ARs|"), (5, "|AR1|AR5|ARs|"), (300, "|AR1|AR10|AR300|ARs|")])
def test_the_limit_counts_and_names_the_rows(register, caplog, limit, rows):
    register("coco_two", coco([1], [(1, 1, [0, 0, 50, 50], {})], {1: "only"}))
    found = {1: detections([100, 50, 20, 20, 0, 0.9], [0, 0, 50, 50, 0, 0.8])}
    with caplog.at_level(logging.INFO):
        figures = evaluate("coco_two", found, max_dets_per_image=limit)["bbox"]
    assert figures["AP"] == pytest.approx(0 if limit == 1 else 50)
    assert rows in caplog.text.replace(" ", "")


@pytest.mark.parametrize("limit", [0, -3, 2.5])
def test_limits_that_are_none(register, limit):
    with pytest.raises(UserError, match="max_dets_per_image must be a positive whole number"):
        COCOEvaluator(register("coco_hand", HAND), max_dets_per_image=limit)


def test_classes_of_the_same_name_keep_their_figures(register, caplog):
    content = {**HAND, "categories": [{"id": i, "name": "cup"} for i in (3, 8)] + [{"id": 9, "name": "never"}]}
    with caplog.at_level(logging.INFO):
        result = evaluate(register("coco_names", content), HAND_DETECTIONS)["bbox"]
    assert result["AP-cup (3)"] == pytest.approx(100 * 51 / 101) and result["AP-cup (8)"] == pytest.approx(70)
    assert math.isnan(result["AP-never"]) and "AP-cup" not in result
    assert "|cup(3)|50.495|cup(8)|70.000|never|nan|" in caplog.text.replace(" ", "")


def test_the_order_of_the_classes_is_that_of_the_metadata(register):
    name = register("coco_order", HAND)
    names = ["never", "fork", "cup"]
    MetadataCatalog.get(name).set(thing_classes=names, thing_dataset_id_to_contiguous_id={9: 0, 8: 1, 3: 2})
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": detections([10, 10, 50, 40, 1, 0.7])}])
    result = evaluator.evaluate()["bbox"]
    assert (result["AP-cup"], result["AP-fork"]) == (pytest.approx(0), pytest.approx(70))


def test_masks_are_not_scored_and_that_is_said(register, caplog):
    found = HAND_DETECTIONS[2]
    found = Instances(found.image_size, **found.get_fields(), pred_masks=torch.zeros(1, 100, 200))
    register("coco_hand", HAND)
    for tasks, count in ((None, 1), (("bbox",), 0)):
        caplog.clear()
        evaluator = COCOEvaluator("coco_hand", tasks)
        evaluator.reset()
        for _ in range(2):
            evaluator.process([{"image_id": 2}], [{"instances": found}])
        assert [r.getMessage() for r in caplog.records] == [
            "COCOEvaluator scores boxes only; the model's pred_masks are not scored"
        ] * count


@pytest.mark.skipif(not USE_DETECTRON2, reason="Detectron2 is not installed")
def test_figures_are_those_of_detectron2(register):
    from detectron2.evaluation import COCOEvaluator as Original

    content, found = random_case()
    name = register("coco_random", content)
    ours = evaluate(name, found)
    theirs = Original(name, ("bbox",), use_fast_impl=False)
    theirs.reset()
    for image_id, instances in found.items():
        theirs.process([{"image_id": image_id}], [{"instances": instances}])
    assert ours["bbox"] == pytest.approx(theirs.evaluate()["bbox"], abs=1e-9)


# --- two processes ---


def _two_ranks(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    register_coco_instances("coco_ranks", {}, f"{folder}/ranks.json", folder)
    found = in_new_ids("coco_ranks", random_case()[1], MIXED)
    mine = {list(found)[i]: found[list(found)[i]] for i in InferenceSampler(12)}
    report = {
        "result": evaluate("coco_ranks", mine, output_dir=f"{folder}/out"),
        "own": evaluate("coco_ranks", mine, distributed=False)["bbox"]["AP"],
    }
    with open(f"{folder}/{rank}.json", "w", encoding="utf-8") as f:
        json.dump(report, f)
    dist.destroy_process_group()
    os._exit(0)  # without the interpreter's end, in which threads of gloo that are left may abort the process


def test_two_processes_give_the_same_result(tmp_path):
    (tmp_path / "ranks.json").write_text(json.dumps(renumbered(random_case()[0], MIXED)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_two_ranks, (port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["result"]["bbox"] == pytest.approx(RECORDED, abs=2e-6) and second["result"] == {}
    assert first["own"] != pytest.approx(second["own"])
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [each["image_id"] for each in written] == [
        MIXED(image_id) for image_id, instances in random_case()[1].items() for _ in instances.scores
    ]
