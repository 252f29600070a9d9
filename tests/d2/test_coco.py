"""Contract of COCO files and of running a model over a dataset in `detrx.d2`, whichever provider is active."""

import json
import logging
import math
import os
import re
import socket

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
    DatasetEvaluator,
    inference_context,
    inference_on_dataset,
    print_csv_format,
)
from detrx.d2.structures import BoxMode
from tests.coco.registered import coco, registering

embedded_only = pytest.mark.skipif(USE_DETECTRON2, reason="Detectron2's own errors are less clear")


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
    with registering(tmp_path) as add:
        yield add


def test_registered_file(register, tmp_path, caplog):
    first, second = DatasetCatalog.get(register("d2_small", SMALL))
    assert (first["image_id"], second["image_id"]) == (7, 30)
    assert {k: second[k] for k in ("height", "width")} == {"height": 100, "width": 200}
    assert second["file_name"] == str(tmp_path / "images" / "30.png")
    assert second["annotations"] == [
        {"iscrowd": 0, "bbox": [1, 2, 30, 40], "category_id": 0, "bbox_mode": BoxMode.XYWH_ABS}
    ]
    crowd, cup, *cats = first["annotations"]
    assert [cat["bbox"] for cat in cats] == ([] if USE_DETECTRON2 else [[0, 0, 9, 9]])  # it has no valid polygon
    assert all("segmentation" not in cat for cat in cats)
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


@embedded_only
@pytest.mark.parametrize("key", ["images", "categories"])
def test_json_that_is_not_coco(register, key):
    register("d2_other", {**SMALL, key: None})
    with pytest.raises(ValueError, match=rf"d2_other\.json.*{key}"):
        DatasetCatalog.get("d2_other")


# --- evaluation ---


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
    shares = list(InferenceSampler(13)), list(InferenceSampler(12))
    training, repeated = iter(TrainingSampler(7, seed=3)), iter(RepeatFactorTrainingSampler(torch.ones(7), seed=3))
    report = {
        "shares": shares,
        "training": [next(training) for _ in range(8)],
        "repeated": [next(repeated) for _ in range(7)],
        "seeds_agree": TrainingSampler(7)._seed,
    }
    with open(f"{folder}/{rank}.json", "w", encoding="utf-8") as f:
        json.dump(report, f)
    dist.destroy_process_group()
    os._exit(0)  # without the interpreter's end, in which threads of gloo that are left may abort the process


def test_two_processes_share_the_work(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_two_ranks, (port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["shares"] == [[*range(7)], [*range(6)]] and second["shares"] == [[*range(7, 13)], [*range(6, 12)]]
    assert first["training"] == [5, 4, 0, 1, 6, 1, 0, 0] and second["training"] == [3, 6, 2, 2, 3, 5, 4, 6]
    assert sorted(first["repeated"][:4] + second["repeated"][:3]) == [*range(7)]
    assert first["seeds_agree"] == second["seeds_agree"]
