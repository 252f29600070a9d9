"""Scores of random files are those that pycocotools gives after the ids were made 1, 2, ... by hand."""

import contextlib
import io

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrx.evaluation import BoxScores, coco_api, score_boxes
from tests.coco.strategies import LIMITS, Case, cases


def rank(ids):
    """1, 2, ... for the ids: numbers first, by value, then text."""
    numbers = sorted(i for i in ids if not isinstance(i, str))
    return {i: n for n, i in enumerate([*numbers, *sorted(i for i in ids if isinstance(i, str))], start=1)}


def oracle(case: Case, limit: int) -> dict[str, np.ndarray]:
    """What pycocotools accumulates."""
    images, categories = (rank([each["id"] for each in case.truth[key]]) for key in ("images", "categories"))
    annotations = []
    for number, each in enumerate(case.truth["annotations"], start=1):
        area = each.get("area")
        annotations.append(
            {
                "id": number,
                "image_id": images[each["image_id"]],
                "category_id": categories[each["category_id"]],
                "bbox": each["bbox"],
                "iscrowd": each.get("iscrowd") or 0,
                "area": each["bbox"][2] * each["bbox"][3] if area is None else area,
            }
        )
    found = [
        {**each, "image_id": images[each["image_id"]], "category_id": categories[each["category_id"]]}
        for each in case.results
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number} for number in images.values()],
        "categories": [{"id": number} for number in categories.values()],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if found:
            detections = truth.loadRes(found)
        else:
            detections = COCO()
            detections.dataset = {**truth.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.params.maxDets = [n for n in (1, 10) if n < limit] + [limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def assert_same(scores: BoxScores, precision: np.ndarray, recall: np.ndarray) -> None:
    """Up to a few roundings: faster-coco-eval does without the epsilon that pycocotools adds to denominators."""
    np.testing.assert_allclose(scores.precision, precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.recall, recall, rtol=0, atol=1e-12)


@pytest.mark.parametrize("use_fast_impl", [True, False])
@given(case=cases(), limit=LIMITS)
def test_scores_are_those_of_pycocotools(use_fast_impl, case, limit):
    if use_fast_impl:
        pytest.importorskip("faster_coco_eval")
    scores = score_boxes(coco_api(case.truth), case.results, limit, use_fast_impl=use_fast_impl)
    expected = oracle(case, limit)
    assert_same(scores, expected["precision"], expected["recall"])
    assert scores.max_dets == expected["params"].maxDets
    assert scores.category_ids == [*rank([each["id"] for each in case.truth["categories"]])]
    assert list(scores.average_recall())[:-3] == [f"AR{n}" for n in scores.max_dets]


@pytest.mark.parametrize("use_fast_impl", [True, False])
@given(case=cases(), data=st.data())
def test_scores_do_not_depend_on_the_order_of_the_images(use_fast_impl, case, data):
    """Neither of those in the file nor of those of the detections; within an image, the order breaks ties."""
    ids = [each["id"] for each in case.truth["images"]]
    place = {i: n for n, i in enumerate(data.draw(st.permutations(ids)))}

    def by_place(entries, key):
        return sorted(entries, key=lambda each: place[each[key]])

    shuffled = {
        "images": by_place(case.truth["images"], "id"),
        "annotations": by_place(case.truth["annotations"], "image_id"),
        "categories": data.draw(st.permutations(case.truth["categories"])),
    }
    scores = score_boxes(coco_api(case.truth), case.results, use_fast_impl=use_fast_impl)
    others = score_boxes(coco_api(shuffled), by_place(case.results, "image_id"), use_fast_impl=use_fast_impl)
    assert_same(others, scores.precision, scores.recall)
    assert others.category_ids == scores.category_ids
