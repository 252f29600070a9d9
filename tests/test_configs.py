"""Every config in the repository loads, and its model can be built."""

from pathlib import Path

import pytest
import torch

from detrx.d2.config import LazyConfig, instantiate
from detrx.modeling import DetectionTransformer

ROOT = Path(__file__).resolve().parent.parent / "configs"
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if path.parent.name != "models")


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name: str):
    cfg = LazyConfig.load(str(ROOT / name))
    if "model" not in cfg:
        return
    cfg.model.backbone.pretrained = False
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert isinstance(model, DetectionTransformer)
    if not name.startswith("common/"):
        # What Detectron2's own training script reads.
        assert {"dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
