import copy
import json

import pytest

from detrx.evaluation import check_results, read_ground_truth, read_results
from tests.coco.cases import found, ground_truth

TRUTH = ground_truth([(1, 3, [0, 0, 10, 10], {}), (1, 8, [5, 5, 20, 20], {})])
RESULTS = found((1, 3, [0, 0, 10, 10], 0.5), (1, 8, [0.5, 0, 1e3, 10], 1))


@pytest.fixture
def write(tmp_path):
    def _write(content):
        path = tmp_path / "file.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return _write


def test_good_files(write):
    assert read_ground_truth(write(TRUTH)) == TRUTH
    assert read_results(write(RESULTS), TRUTH) == RESULTS
    assert read_results(write([]), TRUTH) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_id", 7, r"entry 1 has image_id 7, which is not in the 'images' of the annotations"),
        ("image_id", [1], r"entry 1 has image_id \[1\]"),
        ("category_id", 0, r"entry 1 \(image 1\) has category_id 0, the categories of the annotations are 3, 8"),
        ("bbox", [0, 0, 5], r"entry 1 \(image 1\) has bbox \[0, 0, 5\], expected four finite numbers"),
        ("bbox", [0, 0, 5, float("nan")], r"entry 1 \(image 1\) has bbox \[0, 0, 5, nan\], expected four finite"),
        ("bbox", [0, 0, 5, "6"], r"entry 1 \(image 1\) has bbox .*expected four finite numbers"),
        ("bbox", None, r"entry 1 \(image 1\) has bbox None, expected four finite numbers"),
        ("bbox", [0, 0, -5, 6], r"entry 1 \(image 1\) has bbox \[0, 0, -5, 6\], .*width and height of 0 or more"),
        ("score", float("inf"), r"entry 1 has score inf, expected a finite number"),
        ("score", "0.5", r"entry 1 has score '0\.5', expected a finite number"),
        ("score", None, r"entry 1 has score None, expected a finite number"),
    ],
)
def test_faulty_results_name_file_and_entry(write, key, value, message):
    results = copy.deepcopy(RESULTS)
    results[1][key] = value
    with pytest.raises(ValueError, match=rf"^results file .*file\.json: {message}"):
        read_results(write(results), TRUTH)


def test_results_of_another_form(write):
    with pytest.raises(ValueError, match=r"results file .*file\.json: expected a list of detections.*got an object"):
        read_results(write(TRUTH), TRUTH)
    with pytest.raises(ValueError, match=r"entry 0 has no 'score'"):
        read_results(write(TRUTH["annotations"]), TRUTH)
    with pytest.raises(ValueError, match=r"entry 0 has no 'image_id'"):
        check_results([5], TRUTH)
    with pytest.raises(ValueError, match=r"results file .*file\.json: not valid JSON"):
        read_results(write('[{"image_id": 1,'), TRUTH)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results file .*none\.json does not exist"):
        read_results(tmp_path / "none.json", TRUTH)
    with pytest.raises(FileNotFoundError, match=r"annotation file .*none\.json does not exist"):
        read_ground_truth(tmp_path / "none.json")


def test_annotations_of_unlisted_images_are_left_out(write, caplog):
    content = copy.deepcopy(TRUTH)
    content["annotations"][1]["image_id"] = 7
    assert read_ground_truth(write(content))["annotations"] == TRUTH["annotations"][:1]
    assert "file.json: 1 annotations are of images that it does not list" in caplog.text


def test_faulty_annotations_name_file_and_entry(write):
    cases = [
        (lambda c: c.pop("categories"), "has no list 'categories'"),
        (lambda c: c["images"][0].pop("id"), r"images\[0\] has no 'id'"),
        (lambda c: c["annotations"][1].pop("bbox"), r"annotations\[1\] has no 'bbox'"),
        (lambda c: c["annotations"][1].update(category_id=4), r"annotations\[1\] \(image 1\) has category_id 4"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"annotations\[1\] \(image 1\) has bbox \[1, 2, 3\]"),
        (lambda c: c["annotations"][1].update(id=1), "the ids of its annotations are not unique"),
    ]
    for change, message in cases:
        content = copy.deepcopy(TRUTH)
        change(content)
        with pytest.raises(ValueError, match=rf"annotation file .*file\.json.*{message}"):
            read_ground_truth(write(content))
    with pytest.raises(ValueError, match=r"annotation file .*file\.json: expected an object with images"):
        read_ground_truth(write(RESULTS))
