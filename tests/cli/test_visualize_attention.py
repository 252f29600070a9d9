"""`tools/visualize_attention.py`: models side by side on the images of a dataset, and its arguments."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from detrx import model_zoo
from detrx.cli import visualize_attention as tool
from detrx.d2.config import instantiate
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances

CONDITIONAL, DEFORMABLE = "conditional_detr/conditional_detr_student_digits", "deformable_detr/deformable_detr_digits"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Options for images with the ids 1 to 3, the last of which has no object."""
    images, annotations = [], []
    for number in (1, 2, 3):
        Image.new("RGB", (64, 48), (40 * number, 90, 60)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        box = {"category_id": 3, "bbox": [5, 6, 20, 30], "area": 600, "iscrowd": 0}
        annotations += [{**box, "id": number, "image_id": number}] if number < 3 else []
    categories = [{"id": i, "name": f"digit {i}"} for i in range(10)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances("detrx_test_attention", {}, str(path), str(tmp_path))
    yield ["--dataset", "detrx_test_attention", "--output", str(tmp_path / "out"), "--device", "cpu"]
    DatasetCatalog.remove("detrx_test_attention")
    MetadataCatalog.remove("detrx_test_attention")


def model(name: str, folder: Path) -> list[str]:
    """The options of a random model."""
    weights = folder / f"{name.replace('/', '_')}.pth"
    torch.save({"model": instantiate(model_zoo.get_config(name).model).state_dict()}, weights)
    return ["--config-file", name, "--weights", str(weights)]


def test_models_side_by_side(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture):
    models = [*model(CONDITIONAL, tmp_path), *model(DEFORMABLE, tmp_path)]
    tool.main([*models, *arguments, "--names", "dense", "deformable", "--heads", "0,2"])
    assert "2 images in " in (printed := capsys.readouterr().out) and "1 have no object to draw" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "2.png"]
    two = Image.open(tmp_path / "out" / "1.png").size
    options = [*models[:4], *arguments, "--images", "3", "--queries", "7,8,9", "--boxes", "both", "--map", "full"]
    tool.main([*options, "--heads", "1"])
    one = Image.open(tmp_path / "out" / "3.png").size
    assert one[0] < two[0] and one[1] > two[1], "three queries of one head are higher and narrower than two rows of two"


def test_best_queries_without_an_object_and_files_that_cannot_be_read(tmp_path: Path, arguments: list[str]):
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: image .*2\.png cannot be read"):
        tool.main([*model(CONDITIONAL, tmp_path), *arguments, "--queries", "best", "--most", "1", "--heads", "0"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "3.png"]
    with pytest.raises(SystemExit, match=r"error: dataset detrx_test_attention has no images with the ids 4, x$"):
        tool.main([*model(CONDITIONAL, tmp_path), *arguments, "--images", "1,4,x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "a", "--weights", "b"], "1 times --config-file, but 2 times --weights"),
        (["--weights", "a", "--names", "x", "y"], "argument --names: 2 names for 1 models"),
        (["--weights", "a", "--queries", "worst"], "argument --queries: invalid truth, best or list of numbers value"),
        (["--weights", "a", "--heads", "1,-2"], "argument --heads: must be 0 or more, got 1,-2"),
    ],
)
def test_wrong_arguments(options: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        tool.main(["--config-file", "c", *options])
    assert message in capsys.readouterr().err
