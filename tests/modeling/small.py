"""Small random detectors, and inputs for them."""

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import nn

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.d2.structures import Boxes, Instances
from detrx.modeling import DetectionTransformer

SMALL_BACKBONE = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_width": 4, "stem_type": "deep"}
SMALL_CHANNELS = {"res2": 8, "res3": 16, "res4": 24, "res5": 32}


def make_model(
    name: str = "deformable_detr/deformable_detr_digits.py",
    change: Callable[[DictConfig], None] | None = None,
    num_queries: int = 10,
) -> DetectionTransformer:
    """The detector of a digits config, thinner, with larger weights than at the start of a training; `change` gets the
    config of the model."""
    cfg = model_zoo.get_config(name).model
    if change is not None:
        change(cfg)
    cfg.backbone.model_args.update(SMALL_BACKBONE)
    cfg.neck.in_channels = [SMALL_CHANNELS[feature] for feature in cfg.neck.in_features]
    cfg.tokenizer.embed_dim = 64
    cfg.tokenizer.position_embedding.num_feats = 32
    cfg.query_source.num_queries = num_queries
    model = instantiate(cfg)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


def make_input(image_height: int, image_width: int, **extra) -> dict:
    return {"image": torch.randint(256, (3, image_height, image_width), dtype=torch.uint8), **extra}


def with_boxes(each: dict, count: int) -> dict:
    height, width = each["image"].shape[-2:]
    corner = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
    boxes = Boxes(torch.cat([corner, corner + 8], dim=1))
    each["instances"] = Instances((height, width), gt_boxes=boxes, gt_classes=torch.randint(10, (count,)))
    return each


def all_detections(model: DetectionTransformer, images: list[dict]) -> Instances:
    """The detections of the first image: all pairs of query and class in the order of the queries, as rounding decides
    on the order of equal scores, and on which of them are detected."""
    model.postprocess.num_detections = 10**6
    found = model(images)[0]["instances"]
    return found[(found.pred_queries * 1000 + found.pred_classes).argsort()]
