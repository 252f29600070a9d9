import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from detrx import Predictor, model_zoo
from detrx.checkpoint.checkpointer import CheckpointError
from detrx.cli import demo
from detrx.d2.config import instantiate
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.d2.evaluation import inference_on_dataset
from detrx.d2.structures import Boxes, Instances
from detrx.data import class_names_of
from detrx.data.digits import CLASSES
from detrx.engine.config import ConfigError
from detrx.evaluation import COCOEvaluator
from detrx.predictor import as_pil_image

CONFIG = "deformable_detr/deformable_detr_digits"
THIN = [
    "model.backbone.model_args={layers: [1, 1, 1, 1], channels: [8, 16, 24, 32], stem_width: 4, stem_type: deep}",
    "model.neck.in_channels=[16, 24, 32]",
    "model.tokenizer.embed_dim=32",
    "model.tokenizer.position_embedding.num_feats=16",
    "model.query_source.num_queries=8",
    "model.postprocess.num_detections=1000",  # all there are: rounding must not decide which are reported
]


def thin_config():
    from detrx.engine.config import load_config

    return load_config(model_zoo.get_config_file(CONFIG), THIN)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    model = instantiate(thin_config().model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("predictor") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def predictor(weights):
    return Predictor.from_config(CONFIG, weights, device="cpu", score_threshold=0.0, overrides=THIN)


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def by_query(instances):
    """Boxes and scores of all pairs of query and class, in their order."""
    order = (instances.pred_queries * 100 + instances.pred_classes).argsort()
    return torch.cat([instances.pred_boxes.tensor[order], 100 * instances.scores[order, None]], dim=1)


def test_every_form_of_an_image_gives_the_same_detections(predictor, tmp_path):
    image = picture(60, 44)
    image.save(tmp_path / "a.png")
    array = np.asarray(image).copy()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = predictor(image)
    assert expected.image_size == (44, 60)
    assert set(expected.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_queries"}
    assert len(expected) == 80 and (expected.scores.diff() <= 0).all()
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", array, tensor, tensor / 255, array[:, ::-1][:, ::-1]]
    for form in forms:
        assert torch.equal(by_query(predictor(form)), by_query(expected)), type(form)
    for batch in ([image], (image,), array[None], tensor[None]):
        (found,) = predictor(batch)
        assert torch.equal(by_query(found), by_query(expected))
    assert predictor([]) == []
    other = predictor(picture(60, 44, seed=1))
    assert (by_query(other) - by_query(expected)).abs().max() > 0.1  # the image does matter


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_of_mixed_sizes_give_the_detections_of_single_images(predictor, weights, batch_size):
    images = [picture(60, 44), picture(96, 32, 1), picture(40, 72, 2), picture(60, 44, 3)]
    batched = Predictor(predictor.model, predictor.mapper, score_threshold=0.0, batch_size=batch_size)(images)
    for image, found in zip(images, batched, strict=True):
        assert found.image_size == (image.height, image.width)
        torch.testing.assert_close(by_query(found), by_query(predictor(image)), atol=1e-3, rtol=1e-4)


@pytest.fixture
def dataset(tmp_path):
    """Three images of digits' size with one box each."""
    name = "detrx_test_predictor"
    images, annotations = [], []
    for i in range(1, 4):
        drawn = Image.new("RGB", (128, 128))
        ImageDraw.Draw(drawn).rectangle([10 * i, 20, 10 * i + 40, 70], fill=(90 * i % 256, 200, 40))
        drawn.save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 128, "height": 128})
        box = [10 * i, 20, 40, 50]
        annotations.append({"id": i, "image_id": i, "category_id": i, "bbox": box, "area": 2000, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances(name, {}, str(file), str(tmp_path))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_same_detections_as_evaluation_and_the_demo(weights, dataset, tmp_path, monkeypatch):
    cfg = thin_config()
    cfg.dataloader.test.dataset.names = dataset
    cfg.dataloader.test.num_workers = 0
    cfg.dataloader.test.mapper.augmentations = {"_target_": "detrx.data.resize_augmentation", "size": 96}
    evaluator = COCOEvaluator(dataset, tasks=("bbox",), distributed=False, output_dir=str(tmp_path / "evaluation"))
    predictor = Predictor.from_config(cfg, weights, device="cpu", score_threshold=0.0, batch_size=2)
    loader = instantiate(cfg.dataloader.test)
    inference_on_dataset(predictor.model, loader, evaluator)
    evaluated = json.loads((tmp_path / "evaluation" / "coco_instances_results.json").read_text())

    found = {}
    for record in DatasetCatalog.get(dataset):
        instances = predictor(record["file_name"])
        for box, score, index in zip(*list(predictor.to_dict(instances).values())[:3], strict=True):
            key = (record["image_id"], index + 1, round(score, 4))
            found.setdefault(key, []).append([box[0], box[1], box[2] - box[0], box[3] - box[1]])
    assert sum(map(len, found.values())) == len(evaluated) == 3 * 80
    for result in evaluated:
        candidates = [
            box
            for digits in (-1e-4, 0, 1e-4)  # scores may be rounded to the neighbouring digit
            for box in found.get(
                (result["image_id"], result["category_id"], round(round(result["score"], 4) + digits, 4)), []
            )
        ]
        assert any(np.allclose(box, result["bbox"], atol=0.02) for box in candidates), result

    monkeypatch.setattr(demo, "load_config", lambda *_: cfg)
    command = ["--config-file", "thin", "--weights", str(weights), "--dataset", dataset, "--score-threshold", "0"]
    demo.main([*command, "--device", "cpu", "--output", str(tmp_path / "demo")])
    shown = json.loads((tmp_path / "demo" / "detections.json").read_text())
    assert len(shown) == len(evaluated)
    np.testing.assert_allclose(
        sorted([r["image_id"], r["category_id"], r["score"]] for r in shown),
        sorted([r["image_id"], r["category_id"], r["score"]] for r in evaluated),
        atol=1e-4,
    )


def test_config_as_name_file_or_object(weights):
    image = picture(48, 48)
    names = (CONFIG, f"{CONFIG}.py", model_zoo.get_config_file(CONFIG), Path(model_zoo.get_config_file(CONFIG)))
    cfg = model_zoo.get_config(CONFIG)
    before = str(cfg)
    results = []
    for config in (*names, cfg):
        predictor = Predictor.from_config(config, weights, device="cpu", score_threshold=0.0, overrides=THIN)
        assert predictor.class_names == list(CLASSES)
        results.append(by_query(predictor(image)))
    assert all(torch.equal(result, results[0]) for result in results)
    assert str(cfg) == before


def test_averaged_weights_and_the_threshold(weights, tmp_path):
    state = torch.load(weights)["model"]
    other = {key: value + 0.05 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": other, "ema": {"model": state}}, tmp_path / "both.pth")
    image = picture(48, 48)
    expected = Predictor.from_config(CONFIG, weights, device="cpu", score_threshold=0.0, overrides=THIN)(image)
    averaged = Predictor.from_config(CONFIG, tmp_path / "both.pth", device="cpu", overrides=THIN)
    averaged.score_threshold = float(expected.scores[9])
    found = averaged(image)
    assert torch.equal(found.scores, expected.scores[: len(found)]) and len(found) == 10


def test_what_cannot_be_used_is_named(predictor, weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config 'deformable_detr/deformable_detr_digit\.py'.*digits"):
        Predictor.from_config("deformable_detr/deformable_detr_digit.py", weights)
    with pytest.raises(ConfigError, match=r"unknown config key 'model\.queries'"):
        Predictor.from_config(thin_config(), weights, overrides=["model.queries=3"])
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        Predictor.from_config(thin_config(), tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no checkpoint given"):
        Predictor.from_config(thin_config(), "")
    with pytest.raises(CheckpointError):
        Predictor.from_config(CONFIG, weights)
    with pytest.raises(FileNotFoundError, match=r"image nowhere\.png does not exist"):
        predictor(["nowhere.png"])
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), got float64 \(4, 4, 3\)"):
        predictor(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"got uint8 \(4, 4\)"):
        predictor(np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"must be \(3, H, W\).*got torch.uint8 \(4, 4, 3\)"):
        predictor(torch.zeros(4, 4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"in \[0, 1\], got \[0, 255\]"):
        predictor(torch.tensor([0.0, 255.0]).expand(3, 4, 2))
    with pytest.raises(TypeError, match="a path, a PIL image, an array or a tensor, got int"):
        predictor(3)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        Predictor(predictor.model, predictor.mapper, batch_size=0)


def some_instances():
    return Instances(
        (40, 60),
        pred_boxes=Boxes(torch.tensor([[10.0, 5.0, 30.0, 25.0], [40.0, 10.0, 50.0, 30.0]])),
        scores=torch.tensor([0.875, 0.5]),
        pred_classes=torch.tensor([2, 11]),
        pred_queries=torch.tensor([4, 1]),
    )


def test_plain_dict(predictor):
    result = predictor.to_dict(some_instances())
    assert json.loads(json.dumps(result)) == {
        "boxes": [[10, 5, 30, 25], [40, 10, 50, 30]],
        "scores": [0.875, 0.5],
        "class_ids": [2, 11],
        "names": [CLASSES[2], "11"],  # there is no name for class 11
    }


def test_drawing(predictor):
    image = Image.new("RGB", (60, 40))
    drawn = predictor.draw(image, some_instances(), min_side=40)
    assert drawn.size == (60, 40) and drawn.getpixel((20, 15)) == (0, 0, 0)
    assert drawn.getpixel((9, 24)) == (0x0A, 0x84, 0xFF)  # left side of the first box, colour of class 2
    assert drawn.getpixel((39, 22)) == (0xFF, 0x9F, 0x0A)  # of the second one
    assert predictor.draw(np.zeros((40, 60, 3), dtype=np.uint8), some_instances()).size == (720, 480)
    assert image.getcolors() == [(2400, (0, 0, 0))]


def test_supervision(predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        predictor.to_supervision(some_instances())

    class Detections:
        def __init__(self, xyxy, mask=None, confidence=None, class_id=None, tracker_id=None, data=None):
            self.xyxy, self.confidence, self.class_id, self.data = xyxy, confidence, class_id, data

    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))
    found = predictor.to_supervision(some_instances())
    assert found.xyxy.dtype == np.float32 and found.xyxy.tolist() == [[10, 5, 30, 25], [40, 10, 50, 30]]
    assert found.confidence.tolist() == [0.875, 0.5] and found.class_id.tolist() == [2, 11]
    assert found.data["class_name"].tolist() == [CLASSES[2], "11"]


def test_pictures_are_upright_and_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert as_pil_image(opened).size == as_pil_image(tmp_path / "turned.jpg").size == (60, 40)
        assert opened.size == (40, 60)  # the image of the caller is as it was
    assert as_pil_image(Image.new("RGBA", (4, 4), (9, 9, 9, 0))).getpixel((0, 0)) == (9, 9, 9)


def test_class_names_of_a_dataset_that_was_not_loaded_yet(dataset):
    assert class_names_of(dataset) == list(CLASSES)
    assert class_names_of("digits_val") == list(CLASSES)


def test_importing_detrx_stays_light():
    code = """
import sys
sys.modules["torchvision"] = None
import detrx
assert "torch" not in sys.modules
try:
    detrx.Nothing
except AttributeError as error:
    print(error)
from detrx import Predictor
print(Predictor.__name__)
"""
    environment = {"DETRX_D2": "embedded", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == ["module 'detrx' has no attribute 'Nothing'", "Predictor"], result.stderr
