import contextlib
import copy
import io
import logging
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrx.coco.metrics import table, table_per_class
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


def test_an_annotation_of_id_0_is_warned_of(caplog):
    content = ground_truth([(1, 3, [0, 0, 10, 10], {"id": 0})])
    with caplog.at_level(logging.WARNING):
        coco_api(content)
    assert "id 0" in caplog.text
    coco_api(ground_truth([(1, 3, [0, 0, 10, 10], {})]))
    assert len(caplog.records) == 1


def test_tables():
    assert table({"AP": 12.34567, "AP50": float("nan")}).splitlines() == [
        "|   AP   |  AP50  |",
        "|:------:|:------:|",
        "| 12.346 |  nan   |",
    ]
    lines = table_per_class([("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.25)]).splitlines()
    assert lines[0].split() == ["|", "category", "|", "AP", "|", "category", "|", "AP", "|", "category", "|", "AP", "|"]
    assert lines[3].split()[:4] == ["|", "d", "|", "4.250"]
