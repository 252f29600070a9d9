import pytest
import torch

from detrx import config_zoo, model_zoo
from detrx.checkpoint.checkpointer import CheckpointError
from detrx.engine import ConfigError
from detrx.modeling import backbone
from detrx.modeling.backbone import create_body

NAME = "deformable_detr/deformable_detr_digits"


def test_lists_of_models():
    names = model_zoo.list_models()
    assert names == sorted(names) and len(names) > 100
    assert {f"{NAME}.py", "h_detr/h_deformable_detr_r50.py", "dino/dino_r50.py"} <= set(names)
    assert not any(name.startswith("common/") or "/common/" in name for name in names)
    assert all(config_zoo.name_of(name) == name for name in names)
    dino = model_zoo.list_models("dino/*")
    assert "dino/dino_r50.py" in dino and all(name.startswith("dino/") for name in dino)
    assert model_zoo.list_models("dino/*_r50") == model_zoo.list_models("dino/*_r50.py") == ["dino/dino_r50.py"]
    assert model_zoo.list_models("nothing*") == []


def test_model_by_name(tmp_path):
    model = model_zoo.get(NAME, overrides=["model.query_source.num_queries=7"])
    assert not model.training and model.query_source.num_queries == 7
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model([{"image": image}])[0]["instances"].pred_boxes.tensor
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    loaded = model_zoo.get(f"{NAME}.py", tmp_path / "model.pth", overrides=["model.query_source.num_queries=7"])
    with torch.no_grad():
        assert torch.equal(loaded([{"image": image}])[0]["instances"].pred_boxes.tensor, expected)


def test_backbone_weights_are_loaded_only_if_asked_for(monkeypatch):
    asked = []

    def offline(name, pretrained, *more):
        asked.append(pretrained)
        return create_body(name, False, *more)

    monkeypatch.setattr(backbone, "create_body", offline)
    for pretrained in (False, True):
        model_zoo.get(NAME, overrides=["model.backbone.pretrained=True"], pretrained_backbone=pretrained)
    assert asked == [False, True]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config 'dino/dino_r51\.py'.*dino/dino_r50\.py"):
        model_zoo.get("dino/dino_r51")
    with pytest.raises(ConfigError, match="unknown config key"):
        model_zoo.get(NAME, overrides=["model.queries=3"])
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        model_zoo.get(NAME, tmp_path / "none.pth")
