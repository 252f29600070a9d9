"""Contract of the COCO files and the COCO evaluator of `detrx.d2`, whichever provider is active."""

import json
import logging
import math
import os
import re
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detrx.d2 import USE_DETECTRON2
from detrx.d2.data import (
    DatasetCatalog,
    InferenceSampler,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    register_coco_instances,
)
from detrx.d2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    inference_context,
    inference_on_dataset,
    print_csv_format,
)
from detrx.d2.structures import Boxes, BoxMode, Instances

embedded_only = pytest.mark.skipif(USE_DETECTRON2, reason="Detectron2's own errors are less clear")


def coco(images, annotations, categories):
    """A COCO dictionary. `annotations`: (image id, category id, box, further keys)."""
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 200} for i in images],
        "annotations": [
            {"id": k + 1, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **extra}
            for k, (i, c, box, extra) in enumerate(annotations)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }


SMALL = coco(
    images=[30, 7],
    annotations=[
        (30, 5, [1, 2, 30, 40], {}),
        (7, 90, [5, 5, 10, 10], {"iscrowd": 1, "segmentation": {"size": [3, 3], "counts": [2, 2, 5]}}),
        (7, 5, [0.5, 0, 50, 50], {"segmentation": [[1, 1, 9, 1, 9, 9], [1, 1, 2, 2]]}),
        (7, 12, [0, 0, 9, 9], {"segmentation": [[1, 1, 2, 2]]}),
    ],
    categories={90: "fork", 5: "cup", 12: "cat"},
)


@pytest.fixture
def register(tmp_path):
    """A function that writes a COCO file and registers it for the time of one test."""
    names = []

    def add(name, content):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        names.append(name)
        register_coco_instances(name, {}, str(path), str(tmp_path / "images"))
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registered_file(register, tmp_path, caplog):
    first, second = DatasetCatalog.get(register("d2_small", SMALL))
    assert (first["image_id"], second["image_id"]) == (7, 30)
    assert {k: second[k] for k in ("height", "width")} == {"height": 100, "width": 200}
    assert second["file_name"] == str(tmp_path / "images" / "30.png")
    assert second["annotations"] == [
        {"iscrowd": 0, "bbox": [1, 2, 30, 40], "category_id": 0, "bbox_mode": BoxMode.XYWH_ABS}
    ]
    crowd, cup = first["annotations"]  # the cat has no valid polygon
    assert (crowd["iscrowd"], crowd["category_id"], cup["category_id"]) == (1, 2, 0)
    assert cup["segmentation"] == [[1, 1, 9, 1, 9, 9]]
    assert crowd["segmentation"]["size"] == [3, 3] and isinstance(crowd["segmentation"]["counts"], bytes)

    metadata = MetadataCatalog.get("d2_small")
    assert metadata.thing_classes == ["cup", "cat", "fork"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 12: 1, 90: 2}
    assert metadata.evaluator_type == "coco" and metadata.json_file == str(tmp_path / "d2_small.json")
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "1" in messages[-1]  # objects without a polygon


def test_registered_file_of_a_test_set_and_with_stray_annotations(register, caplog):
    content = coco([1], [], {1: "a"})
    del content["annotations"]
    (record,) = DatasetCatalog.get(register("d2_unlabelled", content))
    assert record["annotations"] == [] and not caplog.records
    content = coco([1], [(1, 1, [0, 0, 5, 5], {}), (2, 1, [0, 0, 5, 5], {})], {1: "a"})
    (record,) = DatasetCatalog.get(register("d2_stray", content))
    assert len(record["annotations"]) == 1 and "d2_stray" in caplog.text


def test_register_twice_is_allowed_if_nothing_changes(register, tmp_path):
    register("d2_small", SMALL)
    register_coco_instances("d2_small", {}, str(tmp_path / "d2_small.json"), str(tmp_path / "images"))
    with pytest.raises(AssertionError):
        register_coco_instances("d2_small", {}, str(tmp_path / "other.json"), str(tmp_path / "images"))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (coco([1], [(1, 9, [0, 0, 5, 5], {})], {1: "a"}), KeyError, "category_id 9, which is not in 'categories'"),
        (coco([1], [], {}), ValueError, "list 'categories' is empty"),
        (coco([1], [(1, 1, [0, 0, 5, 5], {"id": 4})] * 2, {1: "a"}), AssertionError, "annotation id 4 occurs twice"),
        ('{"images": [', ValueError, "not valid JSON"),
        pytest.param(
            coco([1], [(1, 1, [0, 0, 5, 5], {"bbox": [0, 0, 5]})], {1: "a"}),
            ValueError,
            r"annotation 1 .* bbox \[0, 0, 5\]",
            marks=embedded_only,
        ),
    ],
)
def test_faulty_files(register, content, error, message):
    """The embedded core raises ValueError for whatever is wrong with a file, and names it."""
    register("d2_faulty", content)
    with pytest.raises(error if USE_DETECTRON2 else ValueError) as raised:
        DatasetCatalog.get("d2_faulty")
    if not USE_DETECTRON2:
        assert re.search(rf"annotation file .*d2_faulty\.json: .*{message}", str(raised.value))


def test_missing_file(register, tmp_path):
    register("d2_missing", SMALL)
    (tmp_path / "d2_missing.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"d2_missing\.json"):
        DatasetCatalog.get("d2_missing")
    with pytest.raises(FileNotFoundError, match=r"d2_missing\.json"):
        COCOEvaluator("d2_missing")


@embedded_only
@pytest.mark.parametrize("key", ["images", "categories"])
def test_json_that_is_not_coco(register, key):
    register("d2_other", {**SMALL, key: None})
    with pytest.raises(ValueError, match=rf"d2_other\.json.*{key}"):
        DatasetCatalog.get("d2_other")
    with pytest.raises(ValueError, match=rf"d2_other\.json.*{key}"):
        COCOEvaluator("d2_other")


# --- evaluation ---


def detections(*rows, size=(100, 200)):
    """Instances of rows (x, y, w, h, class, score)."""
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    boxes = BoxMode.convert(rows[:, :4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    return Instances(size, pred_boxes=Boxes(boxes), scores=rows[:, 5], pred_classes=rows[:, 4].long())


def evaluate(name, by_image, img_ids=None, **options):
    DatasetCatalog.get(name)  # fills the metadata, as loading the test set does
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
    result = evaluate(register("d2_hand", HAND), HAND_DETECTIONS, output_dir=str(tmp_path / "out"))
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
    result = evaluate(register("d2_random", content), found, **options)
    assert result["bbox"] == pytest.approx(RECORDED, abs=2e-6)


@embedded_only
def test_missing_areas_and_crowd_flags_have_defaults(register):
    content = coco([1], [(1, 1, [0, 0, 10, 10], {})], {1: "only"})
    for key in ("area", "iscrowd"):
        content["annotations"][0].pop(key)
    result = evaluate(register("d2_bare", content), {1: detections([0, 0, 10, 10, 0, 0.5])})["bbox"]
    assert result["APs"] == pytest.approx(100) and math.isnan(result["APm"])


@embedded_only
def test_log_has_tables_of_precision_recall_and_classes(register, caplog):
    with caplog.at_level(logging.INFO):
        evaluate(register("d2_hand", HAND), HAND_DETECTIONS)
    lines = [line.replace(" ", "") for line in caplog.text.splitlines()]
    assert "|AP|AP50|AP75|APs|APm|APl|" in lines and "|60.248|75.248|75.248|50.495|70.000|nan|" in lines
    assert "|AR1|AR10|AR100|ARs|ARm|ARl|" in lines and "|60.000|60.000|60.000|50.000|70.000|nan|" in lines
    assert "|cup|50.495|fork|70.000|never|nan|" in lines


@embedded_only
def test_results_file_is_replaced_at_once(register, tmp_path, monkeypatch):
    name = register("d2_hand", HAND)
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
    register("d2_many", coco([1], [(1, 1, [0, 0, 50, 50], {})], {1: "only"}))
    wrong = [[100, 50, 20, 20, 0, 0.5 + k / 1000] for k in range(149)]
    found = {1: detections(*wrong, [0, 0, 50, 50, 0, 0.1])}  # the hit has the lowest score of 150
    assert evaluate("d2_many", found)["bbox"]["AP"] == 0
    result = evaluate("d2_many", found, max_dets_per_image=200)["bbox"]
    assert [result[k] for k in ("AP", "AP50", "AP75")] == pytest.approx([100 / 150] * 3)
    assert result["APm"] == pytest.approx(100)  # the others are small and do not count here


def test_images_can_be_chosen(register):
    register("d2_hand", HAND)
    assert math.isnan(evaluate("d2_hand", HAND_DETECTIONS, img_ids=[2])["bbox"]["AP"])
    assert evaluate("d2_hand", HAND_DETECTIONS, img_ids=[1])["bbox"]["AP-fork"] == pytest.approx(70)


def test_nothing_detected_or_nothing_processed(register, tmp_path):
    register("d2_hand", HAND)
    result = evaluate("d2_hand", {1: detections(), 2: detections()}, output_dir=str(tmp_path))
    assert set(result["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert all(math.isnan(v) for v in result["bbox"].values())
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []
    assert evaluate("d2_hand", {}) == {}


def test_one_class_has_no_table_of_classes(register):
    content = coco([1], [(1, 1, [0, 0, 50, 50], {})], {1: "only"})
    result = evaluate(register("d2_one", content), {1: detections([0, 0, 50, 50, 0, 0.5])})
    assert set(result["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"} and result["bbox"]["AP"] == pytest.approx(
        100
    )


def test_dataset_without_annotations(register, tmp_path):
    content = coco([1], [], {1: "a", 2: "b"})
    del content["annotations"]
    result = evaluate(
        register("d2_unlabelled", content), {1: detections([0, 0, 5, 5, 1, 0.5])}, output_dir=str(tmp_path)
    )
    assert result == {}
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())[0]["category_id"] == 2


def test_evaluator_errors(register):
    with pytest.raises(AssertionError, match=r"class.7"):
        evaluate(register("d2_hand", HAND), {1: detections([0, 0, 5, 5, 7, 0.5])})
    MetadataCatalog.get("d2_no_file")
    with pytest.raises(ValueError):
        COCOEvaluator("d2_no_file")
    MetadataCatalog.remove("d2_no_file")


@embedded_only
def test_other_tasks_are_refused(register):
    with pytest.raises(ValueError, match="segm"):
        COCOEvaluator(register("d2_hand", HAND), tasks=("bbox", "segm"))


class Count(DatasetEvaluator):
    def __init__(self, key, result=None):
        self.key, self.result = key, result

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [i + o for i, o in zip(inputs, outputs, strict=True)]

    def evaluate(self):
        return {self.key: self.seen}


class Doubler(torch.nn.Module):
    def forward(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        return [2 * x for x in batch]


def test_inference_on_dataset(caplog):
    model = Doubler().train()
    data = [[1, 2], [3], [4]]
    with caplog.at_level(logging.INFO):
        assert inference_on_dataset(model, data, Count("a")) == {"a": [3, 6, 9, 12]}
    assert model.training and torch.is_grad_enabled()
    assert "inference on 3 batches" in caplog.text
    assert "Total inference time: 0:00:00" in caplog.text and "s / iter per device, on 1 devices" in caplog.text
    assert "Total inference pure compute time" in caplog.text
    assert inference_on_dataset(lambda batch: batch, data[:1], Count("a")) == {"a": [2, 4]}
    assert inference_on_dataset(model, [[i] for i in range(12)], Count("a"))["a"] == [3 * i for i in range(12)]


def test_inference_context_restores_the_mode():
    model = Doubler()
    for mode in (True, False):
        with inference_context(model.train(mode)):
            assert not model.training
        assert model.training is mode


def test_print_csv_format(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({"bbox": {"AP": 12.34567, "AP50": math.nan, "AP-cup": 1.0}, "speed": 3})
    assert [r.getMessage() for r in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,nan",
        "copypaste: speed=3",
    ]


# --- two processes ---


def _two_ranks(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = random_case()[1]
    register_coco_instances("d2_ranks", {}, f"{folder}/ranks.json", folder)
    shares = list(InferenceSampler(13)), list(InferenceSampler(12))
    mine = {list(found)[i]: found[list(found)[i]] for i in shares[1]}
    training, repeated = iter(TrainingSampler(7, seed=3)), iter(RepeatFactorTrainingSampler(torch.ones(7), seed=3))
    report = {
        "shares": shares,
        "training": [next(training) for _ in range(8)],
        "repeated": [next(repeated) for _ in range(7)],
        "seeds_agree": TrainingSampler(7)._seed,
        "result": evaluate("d2_ranks", mine, output_dir=f"{folder}/out"),
        "own": evaluate("d2_ranks", mine, distributed=False)["bbox"]["AP"],
    }
    with open(f"{folder}/{rank}.json", "w", encoding="utf-8") as f:
        json.dump(report, f)
    dist.destroy_process_group()
    os._exit(0)  # without the interpreter's end, in which threads of gloo that are left may abort the process


def test_two_processes_share_the_work_and_give_the_same_result(tmp_path):
    (tmp_path / "ranks.json").write_text(json.dumps(random_case()[0]))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_two_ranks, (port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["shares"] == [[*range(7)], [*range(6)]] and second["shares"] == [[*range(7, 13)], [*range(6, 12)]]
    assert first["training"] == [5, 4, 0, 1, 6, 1, 0, 0] and second["training"] == [3, 6, 2, 2, 3, 5, 4, 6]
    assert sorted(first["repeated"][:4] + second["repeated"][:3]) == [*range(7)]
    assert first["seeds_agree"] == second["seeds_agree"]
    assert first["result"]["bbox"] == pytest.approx(RECORDED, abs=2e-6) and second["result"] == {}
    assert first["own"] != pytest.approx(second["own"])
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == sum(
        len(instances) for instances in random_case()[1].values()
    )
