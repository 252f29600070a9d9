import contextlib
import copy
import io
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrx.coco.metrics import distinct_names, table, table_per_class
from detrx.evaluation import coco_api, score_boxes
from tests.coco.cases import found, ground_truth, random_case


def official(content, results):
    """The 12 figures, in percent, and the AP of every class, as pycocotools has them."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(content)
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = []
    for k in range(len(content["categories"])):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        precision = precision[precision > -1]
        per_class.append(100 * precision.mean() if precision.size else np.nan)
    return [100 * v if v > -1 else np.nan for v in evaluation.stats], per_class


@pytest.mark.parametrize("use_fast_impl", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_pycocotools(seed, use_fast_impl):
    if use_fast_impl:
        pytest.importorskip("faster_coco_eval")
    content, results = random_case(seed)
    assert max(sum(r["image_id"] == i for r in results) for i in range(60)) > 200  # so that limits play a role
    stats, per_class = official(content, results)
    before = copy.deepcopy((content, results))
    scores = score_boxes(coco_api(content), results, use_fast_impl=use_fast_impl)
    assert (content, results) == before
    figures = [*scores.average_precision().values(), *scores.average_recall().values()]
    assert figures == pytest.approx(stats, abs=1e-6, nan_ok=True)
    assert [each["AP"] for each in scores.per_class()] == pytest.approx(per_class, abs=1e-6, nan_ok=True)
    assert np.isnan(per_class[-2:]).all() and np.isfinite(per_class[:-2]).all()


def test_the_fast_implementation_is_used_where_it_is_installed(monkeypatch):
    fast = pytest.importorskip("faster_coco_eval").COCOeval_faster
    calls = []
    original = fast.accumulate
    monkeypatch.setattr(fast, "accumulate", lambda self: (calls.append(1), original(self)))
    api = coco_api(ground_truth([(1, 3, [0, 0, 10, 10], {})]))
    score_boxes(api, [])
    assert calls == [1]
    score_boxes(api, [], use_fast_impl=False)
    assert calls == [1]
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert score_boxes(api, []).average_precision()["AP"] == 0
    assert calls == [1]


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_limits_and_chosen_images(use_fast_impl):
    content = ground_truth([(1, 3, [0, 0, 10, 10], {}), (2, 3, [0, 0, 10, 10], {})], images=(1, 2))
    wrong = found(*((1, 3, [100, 0, 40 + k, 40], 0.9) for k in range(20)))
    results = [*wrong, *found((1, 3, [0, 0, 10, 10], 0.1))]
    scores = score_boxes(coco_api(content), results, 15, use_fast_impl=use_fast_impl)
    assert scores.average_recall()["AR15"] == 0
    scores = score_boxes(coco_api(content), results, 21, image_ids=[1], use_fast_impl=use_fast_impl)
    assert scores.average_recall()["AR21"] == pytest.approx(100)
    assert scores.average_precision()["AP"] == pytest.approx(100 / 21)


def test_annotations_without_area_and_crowd_flag():
    content = ground_truth([(1, 3, [0, 0, 10, 10], {})])
    del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]
    scores = score_boxes(coco_api(content), found((1, 3, [0, 0, 10, 10], 0.1))).average_precision()
    assert scores["APs"] == pytest.approx(100) and np.isnan(scores["APm"])


IDS = {
    "from 0": lambda k: k,
    "negative": lambda k: k - 7,
    "beyond 64 bits": lambda k: 2**64 + k,
    "floats": lambda k: float(k),
    "text": lambda k: f"img-{k:04}",
    "numbers and text": lambda k: f"{k:04}" if k > 30 else k,
}


def with_ids(content, results, new_id):
    """The same with other ids of images, annotations and categories."""
    content, results = copy.deepcopy((content, results))
    for section in ("images", "categories", "annotations"):
        for entry in content[section]:
            entry["id"] = new_id(entry["id"])
    for entry in [*content["annotations"], *results]:
        entry.update(image_id=new_id(entry["image_id"]), category_id=new_id(entry["category_id"]))
    return content, results


@pytest.mark.parametrize("use_fast_impl", [True, False])
@pytest.mark.parametrize("kind", IDS)
def test_figures_do_not_depend_on_the_ids(kind, use_fast_impl, caplog):
    content, results = random_case(5)
    stats, per_class = official(content, results)
    content, results = with_ids(content, results, IDS[kind])
    scores = score_boxes(coco_api(content), results, use_fast_impl=use_fast_impl)
    figures = [*scores.average_precision().values(), *scores.average_recall().values()]
    assert figures == pytest.approx(stats, abs=1e-6, nan_ok=True)
    assert [each["AP"] for each in scores.per_class()] == pytest.approx(per_class, abs=1e-6, nan_ok=True)
    assert scores.category_ids == [IDS[kind](i) for i in (2, 3, 5, 7, 11, 13)] and not caplog.records


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_a_single_box_of_annotation_id_0(use_fast_impl):
    content = ground_truth([(0, 0, [0, 0, 10, 10], {"id": 0})], images=(0,), categories={0: "only"})
    scores = score_boxes(coco_api(content), found((0, 0, [0, 0, 10, 10], 0.5)), use_fast_impl=use_fast_impl)
    assert scores.average_precision()["AP"] == pytest.approx(100)


def test_numbers_and_equal_text_are_different_ids():
    content = ground_truth([(1, 3, [0, 0, 10, 10], {}), ("1", "3", [0, 0, 10, 10], {})], (1, "1"), {3: "a", "3": "b"})
    results = found((1, 3, [0, 0, 10, 10], 0.5), ("1", 3, [0, 0, 10, 10], 0.6))
    scores = score_boxes(coco_api(content), results)
    assert scores.category_ids == [3, "3"] and [type(i) for i in scores.category_ids] == [int, str]
    assert [each["AP"] for each in scores.per_class()] == pytest.approx([50, 0])


def test_an_object_of_pycocotools_is_scored_too():
    content, results = random_case(3)
    api = COCO()
    api.dataset = content
    assert score_boxes(api, results).average_precision() == score_boxes(coco_api(content), results).average_precision()


def test_detections_of_unknown_images_and_categories():
    api = coco_api(ground_truth([(1, 3, [0, 0, 10, 10], {})]))
    with pytest.raises(ValueError, match=r"^detection 0 has image_id '1', which the annotations do not have$"):
        score_boxes(api, found(("1", 3, [0, 0, 1, 1], 0.5)))
    with pytest.raises(ValueError, match=r"^detection 1 has category_id 9, which the annotations do not have$"):
        score_boxes(api, found((1, 3, [0, 0, 1, 1], 0.5), (1, 9, [0, 0, 1, 1], 0.5)))


@pytest.mark.parametrize("use_fast_impl", [True, False])
@pytest.mark.parametrize(
    ("limit", "rows", "precision"),
    [(1, ["AR1"], 0), (2, ["AR1", "AR2"], 50), (10, ["AR1", "AR10"], 50), (11, ["AR1", "AR10", "AR11"], 50)],
)
def test_the_limit_counts_and_names_the_rows(limit, rows, precision, use_fast_impl):
    content = ground_truth([(1, 3, [0, 0, 10, 10], {})])
    results = found((1, 3, [100, 0, 10, 10], 0.9), (1, 3, [0, 0, 10, 10], 0.8))
    scores = score_boxes(coco_api(content), results, limit, use_fast_impl=use_fast_impl)
    assert scores.average_precision()["AP"] == pytest.approx(precision)
    recalls = scores.average_recall()
    assert list(recalls) == [*rows, "ARs", "ARm", "ARl"] and recalls["ARs"] == recalls[rows[-1]]


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3", None])
def test_limits_that_are_none(limit):
    with pytest.raises(ValueError, match="max_dets_per_image must be a positive whole number"):
        score_boxes(coco_api(ground_truth([])), [], limit)


def test_names_of_classes_become_distinct():
    assert distinct_names(["a", "b", "a"], [1, 2, "1"]) == ["a (1)", "b", "a ('1')"]
    assert distinct_names(["a", "a", "a (1)"], [1, 2, 3]) == ["a (1) (1)", "a (2)", "a (1)"]
    assert distinct_names(["a (1)", "a", "a"], [3, 1, 2]) == ["a (1)", "a (1) (1)", "a (2)"]
    assert distinct_names(["", ""], [1, 2]) == [" (1)", " (2)"]


def test_tables():
    assert table({"AP": 12.34567, "AP50": float("nan")}).splitlines() == [
        "|   AP   |  AP50  |",
        "|:------:|:------:|",
        "| 12.346 |  nan   |",
    ]
    lines = table_per_class([("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.25)]).splitlines()
    assert lines[0].split() == ["|", "category", "|", "AP", "|", "category", "|", "AP", "|", "category", "|", "AP", "|"]
    assert lines[3].split()[:4] == ["|", "d", "|", "4.250"]
