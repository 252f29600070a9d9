"""What the evaluator says about random files depends on the detections alone: not on the number of processes, batches
or the order of the images. What it writes has the ids of the file."""

import json
import pickle
from types import SimpleNamespace

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import given
from hypothesis import strategies as st

from detrx.coco.metrics import distinct_names
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.d2.structures import Boxes, Instances
from detrx.data import get_detection_dataset_dicts
from detrx.evaluation import COCOEvaluator, coco_api, evaluate_file, read_ground_truth, score_boxes
from tests.coco.strategies import LIMITS, cases


def instances_of(entries, index_of):
    boxes = torch.tensor([each["bbox"] for each in entries], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        (200, 300),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([each["score"] for each in entries], dtype=torch.float64),
        pred_classes=torch.tensor([index_of[each["category_id"]] for each in entries], dtype=torch.int64),
    )


def exactly(result):
    """All that is in a detection; 1, 1.0 and "1" are different ids."""
    ids = [json.dumps(result[key]) for key in ("image_id", "category_id")]
    return *ids, *map(float, result["bbox"]), float(result["score"])


class Processes:
    """Stands in for `comm`: its members are evaluated one after the other, the main one last."""

    def __init__(self):
        self.gathered = {}

    def member(self, rank):
        def gather(mine, dst):
            self.gathered[rank] = pickle.loads(pickle.dumps(mine))
            return [self.gathered[each] for each in sorted(self.gathered)] if rank == dst else []

        return SimpleNamespace(synchronize=lambda: None, gather=gather, is_main_process=lambda: rank == 0)


def evaluate(name, shares, sizes, limit, folder, use_fast_impl):
    """The result of the main process. `shares`: (image id, instances) of each process."""
    processes, results = Processes(), []
    for rank in reversed(range(len(shares))):
        evaluator = COCOEvaluator(name, output_dir=str(folder), max_dets_per_image=limit, use_fast_impl=use_fast_impl)
        evaluator._found._comm = processes.member(rank)
        evaluator.reset()
        left = list(shares[rank])
        while left:
            batch = [left.pop(0) for _ in range(min(len(left), sizes[len(left) % len(sizes)]))]
            evaluator.process([{"image_id": i} for i, _ in batch], [{"instances": each} for _, each in batch])
        results.append(evaluator.evaluate())
    assert not any(results[:-1])
    return results[-1]


@given(case=cases(), limit=LIMITS, data=st.data())
def test_evaluation_of_random_files(tmp_path_factory, case, limit, data):
    folder = tmp_path_factory.getbasetemp()
    file, name = folder / "random.json", "coco_random_file"
    file.write_text(json.dumps(case.truth))
    register_coco_instances(name, {}, str(file), str(folder))
    try:
        records = get_detection_dataset_dicts(name, filter_empty=False)
        index_of = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        ids = [record["image_id"] for record in records]
        of_image = {i: [each for each in case.results if each["image_id"] == i] for i in ids}
        outputs = [(i, instances_of(of_image[i], index_of)) for i in data.draw(st.permutations(ids))]
        count = data.draw(st.integers(1, 3))
        shares = [outputs[rank::count] for rank in range(count)]
        sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        figures = evaluate(name, shares, sizes, limit, folder, data.draw(st.booleans()))["bbox"]
        written = json.loads((folder / "coco_instances_results.json").read_text())
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    assert sorted(map(exactly, written)) == sorted(map(exactly, case.results))
    if not case.results:
        assert all(value != value for value in figures.values())
        return
    scores = score_boxes(coco_api(case.truth), case.results, limit, use_fast_impl=False)
    expected = scores.average_precision()
    if len(case.truth["categories"]) > 1:
        named = {each["id"]: each["name"] for each in case.truth["categories"]}
        names = distinct_names([named[i] for i in scores.category_ids], scores.category_ids)
        expected |= {f"AP-{n}": each["AP"] for n, each in zip(names, scores.per_class(), strict=True)}
        assert len(expected) == 6 + len(names)
    assert figures == pytest.approx(expected, abs=1e-9, nan_ok=True)
    report = evaluate_file(folder / "coco_instances_results.json", file, limit)
    assert report["AP"] == pytest.approx({key: figures[key] for key in report["AP"]}, abs=1e-9, nan_ok=True)
    assert read_ground_truth(file) == case.truth
